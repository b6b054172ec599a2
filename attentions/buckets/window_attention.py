"""Softmax attention over the union of bucket windows, forward and backward."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from attentions.buckets import window_tiles
from attentions.common.derivatives import Gradients, first_order
from attentions.common.windows import Windows, bucket_windows, count_pairs
from attentions.native import bucket_window


def window_attention(
    q: Float[Tensor, "X Q D"],
    k: Float[Tensor, "X M D"],
    v: Float[Tensor, "X M E"],
    tables: list[Windows],
    scale: float,
    *,
    once: bool = True,
) -> tuple[Float[Tensor, "X Q E"], Float[Tensor, "X Q"], str]:
    """Attend from each query to the keys in its windows; return output, log-sum-exp and name of the kernel used.

    A key found by several tables counts once, or each time it is found if not `once`. A query without keys gets zeros
    and minus infinity. The selection and the log-sum-exp are not differentiated; nothing of the size of the support is
    stored.
    """
    kernel = bucket_window if bucket_window.available(q.device) else window_tiles
    out, lse = _WindowAttention.apply(q, k, v, tables, scale, once, kernel)  # type: ignore[misc]
    return out, lse, "native" if kernel is bucket_window else "torch fallback"


def sorted_windows(
    query_codes: Int[Tensor, "X Q"],
    key_codes: Int[Tensor, "X M"],
    heads: int,
    codes: int,
    window: int,
    *,
    causal: bool,
    real: Int[Tensor, " X"] | None = None,
) -> Windows:
    """`bucket_windows` for the queries of `heads` heads, the last positions of the keys; codes are below `codes`.

    Uses a counting sort if the native kernel is available and its counters are no larger than the sequence's own
    arrays.
    """
    if bucket_window.available(query_codes.device) and codes <= 4 * key_codes.shape[1] + 4096:
        return bucket_window.windows(query_codes, key_codes, heads, codes, window, causal=causal, real=real)
    each, M = query_codes.shape[1] // heads, key_codes.shape[1]
    at = torch.arange(M - each, M, device=query_codes.device).repeat(heads).expand_as(query_codes)
    return bucket_windows(query_codes, key_codes, at, window, causal=causal, real=real)


def window_pairs(tables: list[Windows], *, once: bool = True) -> Int[Tensor, "X Q"]:
    """Number of keys that enter each query's output, over all tables."""
    if bucket_window.available(tables[0].start.device):
        return bucket_window.count(tables, once=once)
    return count_pairs(tables, once=once)


def attend(
    q: Float[Tensor, "B H N D"],
    k: Float[Tensor, "B G M D"],
    v: Float[Tensor, "B G M E"],
    tables: list[Windows],
    scale: float,
    *,
    once: bool = True,
) -> tuple[Float[Tensor, "B H N E"], Float[Tensor, "B H N"], str]:
    """`window_attention` in the project's layout; rows of X are sequence and key head pairs."""
    B, G = k.shape[:2]
    out, lse, kernel = window_attention(
        by_key_head(q, G).flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1), tables, scale, once=once
    )
    out, lse = (x.unflatten(1, (-1, q.shape[2])).unflatten(0, (B, G)).flatten(1, 2) for x in (out, lse))
    return out, lse, kernel


def by_key_head(x: Shaped[Tensor, "B H N *rest"], kv_heads: int) -> Shaped[Tensor, "B G Q *rest"]:
    """Concatenate the query heads of each group, so that each key head has one list of queries."""
    return x.unflatten(1, (kv_heads, -1)).flatten(2, 3)


class _WindowAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, tables: list[Windows], scale: float, once: bool, kernel: ModuleType
    ) -> tuple[Tensor, Tensor]:
        out, lse = kernel.forward(q, k, v, tables, scale, once=once)
        if any(ctx.needs_input_grad[:3]):
            ctx.save_for_backward(q, k, v, out, lse)
            ctx.rest = tables, scale, once, kernel
        ctx.mark_non_differentiable(lse)
        return out.to(q.dtype), lse

    @staticmethod
    @first_order
    def backward(ctx: Any, saved: tuple[Tensor, ...], *grads: Tensor) -> Gradients:
        q, k, v, out, lse = saved
        tables, scale, once, kernel = ctx.rest
        dq, dk, dv = kernel.backward(grads[0], q, k, v, out, lse, tables, scale, once=once)
        return dq, dk, dv, None, None, None, None
