"""Reads transformers' attention mask as the span of real tokens in each row, or None without padding.

transformers asks a registered function for a mask once per forward call and passes the result to every layer. No mask
of N times M entries is created here. Masks that are neither causal nor padding cannot be represented and are rejected.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

if TYPE_CHECKING:
    from attentions import Attention

WINDOWS = ("sliding_window_overlay", "chunked_overlay")  # transformers' masks that differ from causal beyond a length


def real_spans(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int | Tensor = 0,
    kv_offset: int = 0,
    mask_function: Callable[..., Any] | None = None,
    attention_mask: Bool[Tensor, "B M"] | None = None,
    local_size: int | None = None,
    **_: Any,
) -> Int[Tensor, "B 2"] | None:
    """Return each row's first real position among the M keys and the one after its last; None without padding.

    The result is on the CPU, so that layers can read it without synchronising. In a row of padding only, both are
    equal.

    The signature is transformers' (`AttentionMaskInterface`). Raises ValueError for sliding windows shorter than the
    sequence, packed sequences and other overlays, caches with more slots than tokens seen, masks whose shape does not
    match the keys, and padding inside a row.
    """
    _require_causal(mask_function, local_size)
    require_slack(kv_length + kv_offset, local_size)
    if kv_length + kv_offset != q_length + int(q_offset):
        raise ValueError(
            f"{kv_length} keys for {q_length + int(q_offset)} tokens seen are not allowed: use DynamicCache and an "
            "attention_mask with one column per token"
        )
    if attention_mask is None:
        return None
    rows, columns = attention_mask.shape[0], attention_mask.shape[-1]
    if attention_mask.ndim != 2 or rows not in (1, batch_size) or columns not in (kv_length, kv_length + kv_offset):
        raise ValueError(
            f"an attention_mask of shape {tuple(attention_mask.shape)} is not allowed for {batch_size} rows and "
            f"{kv_length + kv_offset} tokens, including those in the cache: give one of shape (batch, tokens), or none"
        )
    return _spans(attention_mask[:, -kv_length:].expand(batch_size, -1))


def _require_causal(mask_function: Callable[..., Any] | None, local_size: int | None) -> None:
    from transformers.masking_utils import causal_mask_function

    parts = (mask_function,) if local_size is None else _parts(mask_function)
    for part in parts:
        window = local_size is not None and getattr(part, "__qualname__", "").startswith(WINDOWS)
        if part is not None and part is not causal_mask_function and not window:
            raise ValueError(
                "this mask is not allowed: it is neither causal nor padding (packed sequences, for example); give one "
                "sequence per row, padded on the left"
            )


def _parts(mask_function: Callable[..., Any] | None) -> tuple[Any, ...]:
    """Return the functions that `and_masks` combined, if it did: a window's and the causal one."""
    for cell in getattr(mask_function, "__closure__", None) or ():
        if isinstance(cell.cell_contents, tuple) and all(map(callable, cell.cell_contents)):
            return cell.cell_contents
    return (mask_function,)


def require_slack(seen: int, window: int | None) -> None:
    """Raise ValueError if more tokens were seen than a sliding window covers."""
    if window is not None and seen > window:
        raise ValueError(
            f"sliding_window={window} is not allowed at {seen} tokens: these attentions choose among all keys; set "
            "sliding_window (or use_sliding_window) to none in the configuration, or stay within the window"
        )


def _spans(real: Bool[Tensor, "B M"]) -> Int[Tensor, "B 2"] | None:
    real = real.cpu()
    if bool(real.all()):
        return None
    begins = real[:, 0].int() + (real[:, 1:] & ~real[:, :-1]).sum(1)
    if (begins > 1).any():
        row = int(begins.argmax())
        raise ValueError(
            f"attention_mask of row {row} is not allowed: there is padding between its real tokens; pad on the left "
            "(tokenizer.padding_side = 'left') before decoding"
        )
    first = real.int().argmax(dim=1).where(begins > 0, real.shape[1])
    return torch.stack((first, first + real.sum(1)), dim=1)


class Piece(NamedTuple):
    """Row `row` of a batch without its padding: slices of its real queries and of its real keys."""

    row: int
    queries: slice
    keys: slice


def pieces(spans: Int[Tensor, "B 2"], queries: int, keys: int) -> Iterator[Piece]:
    """Yield the rows one by one, without their padding; a row without real queries has an empty slice."""
    before = keys - queries
    for row, (first, end) in enumerate(spans.tolist()):
        start = max(first - before, 0)
        yield Piece(row, slice(start, max(end - before, start)), slice(first, end))


def attend(
    attention: Attention,
    q: Float[Tensor, "B H N D"],
    k: Float[Tensor, "B G M D"],
    v: Float[Tensor, "B G M E"],
    spans: Int[Tensor, "B 2"] | None,
) -> Float[Tensor, "B H N E"]:
    """Attend each row's real tokens as if the row were alone, whatever its padding contains."""
    if spans is None:
        return attention(q, k, v)
    first, end = spans.unbind(1)
    if bool((first == end).any()) or (attention.causality == "selection" and bool((end < k.shape[2]).any())):
        return _one_by_one(attention, q, k, v, spans)
    if bool((end < k.shape[2]).any()):
        # Later keys have zero weight in the real rows, but zero times NaN is NaN.
        behind = (torch.arange(k.shape[2]) >= end[:, None])[:, None, :, None].to(q.device)
        k, v = k.masked_fill(behind, 0), v.masked_fill(behind, 0)
        q = q.masked_fill(behind[:, :, k.shape[2] - q.shape[2] :], 0)
    return attention(q, k, v, first=first.to(q.device) if bool(first.any()) else None)


def _one_by_one(
    attention: Attention, q: Tensor, k: Tensor, v: Tensor, spans: Int[Tensor, "B 2"]
) -> Float[Tensor, "B H N E"]:
    """Attend row by row, because selection by later keys requires cutting a row at its end; padding gets zeros."""
    rows = []
    for row, queries, keys in pieces(spans, q.shape[2], k.shape[2]):
        one = slice(row, row + 1)
        if queries.start == queries.stop:
            rows.append(q.new_zeros(1, *q.shape[1:3], v.shape[3]))
            continue
        out = attention(q[one, :, queries], k[one, :, keys], v[one, :, keys])
        rows.append(F.pad(out, (0, 0, queries.start, q.shape[2] - queries.stop)))
    return torch.cat(rows)


def require_spans(mask: object) -> Int[Tensor, "B 2"] | None:
    """Return the mask that `real_spans` made. Raises ValueError for a mask built by the caller."""
    if mask is None or (isinstance(mask, Tensor) and mask.shape[1:] == (2,) and mask.dtype == torch.int64):
        return mask
    shape = tuple(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
    raise ValueError(f"an attention_mask of shape {shape} is not allowed: give one of shape (batch, tokens), or none")
