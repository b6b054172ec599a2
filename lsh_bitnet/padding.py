"""What transformers says of the mask, as these attentions want it: the first real position of each row, or nothing.

transformers asks a registered function for a mask once a forward call and hands the answer to every layer. No mask
of N times M entries is ever made here. Whatever is neither causal nor padding cannot be said so, and is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor


def first_positions(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int | Tensor = 0,
    kv_offset: int = 0,
    mask_function: Callable[..., Any] | None = None,
    attention_mask: Bool[Tensor, "B M"] | None = None,
    local_size: int | None = None,
    **_: Any,
) -> Int[Tensor, " B"] | None:
    """First real position of each row among the M keys, None where no row is padded on the left.

    The signature is transformers' (`AttentionMaskInterface`). Raises ValueError for sliding windows that bind, packed
    sequences and other overlays, caches that hold more than was seen, and padding inside a row.
    """
    from transformers.masking_utils import causal_mask_function

    del batch_size
    if local_size is not None:
        _require_slack(kv_length + kv_offset, local_size)
    elif mask_function is not None and mask_function is not causal_mask_function:
        raise ValueError(
            "this mask is not allowed: it is neither causal nor padding (packed sequences, tokens that see their "
            "future); give one sequence a row, padded on the left"
        )
    if kv_length + kv_offset != q_length + int(q_offset):
        raise ValueError(
            f"a cache of {kv_length} keys for {q_length + int(q_offset)} tokens seen is not allowed: use DynamicCache"
        )
    return None if attention_mask is None else _first_of(attention_mask[:, -kv_length:])


def _require_slack(seen: int, window: int) -> None:
    if seen > window:
        raise ValueError(
            f"sliding_window={window} is not allowed at {seen} tokens: these attentions choose among all keys; set "
            "sliding_window (or use_sliding_window) to none in the configuration, or stay within the window"
        )


def _first_of(real: Bool[Tensor, "B M"]) -> Int[Tensor, " B"] | None:
    """Padding on the right needs no mask, since no real query sees it; a hole between real keys would."""
    first = real.int().argmax(dim=1)
    begins = real[:, 0].int() + (real[:, 1:] & ~real[:, :-1]).sum(1)
    if (begins > 1).any():
        row = int(begins.argmax())
        raise ValueError(
            f"attention_mask of row {row} is not allowed: padding stands between its real tokens; pad on the left "
            "(tokenizer.padding_side = 'left') before decoding"
        )
    return first if bool(first.any()) else None


def require_no_extras(extras: dict[str, Any], keys: int) -> None:
    """Raise ValueError for what a layer asks of its attention that these do not compute."""
    window = extras.get("sliding_window")
    if window is not None:
        _require_slack(keys, window)
    for name, what in (("softcap", "capped scores"), ("s_aux", "attention sinks"), ("position_bias", "score biases")):
        if extras.get(name) is not None:
            raise ValueError(f"{name} is not allowed: {what} are not among what these attentions compute")


def require_first(mask: object) -> Int[Tensor, " B"] | None:
    """The mask as `first_positions` made it. Raises ValueError for one that the caller built."""
    if mask is None or (isinstance(mask, torch.Tensor) and mask.ndim == 1 and not mask.is_floating_point()):
        return mask
    shape = tuple(mask.shape) if isinstance(mask, torch.Tensor) else type(mask).__name__
    raise ValueError(f"an attention_mask of shape {shape} is not allowed: give one of (batch, tokens), or none")
