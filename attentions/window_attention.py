"""Softmax attention over the union of bucket windows, forward and backward."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from attentions import window_tiles
from attentions.buckets import Windows


def window_attention(
    q: Float[Tensor, "X Q D"],
    k: Float[Tensor, "X M D"],
    v: Float[Tensor, "X M E"],
    tables: list[Windows],
    scale: float,
    *,
    once: bool = True,
) -> tuple[Float[Tensor, "X Q E"], str]:
    """Attention of each query to the keys in its windows, and the name of the kernel that ran.

    A key that several tables find counts once, or as often as it is found if not `once`. A query without
    keys gets zeros. Selection is not differentiated; nothing of the size of the support is stored.
    """
    out = _WindowAttention.apply(q, k, v, tables, scale, once)
    return out, "torch tiles"  # type: ignore[return-value]


class _WindowAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, tables: list[Windows], scale: float, once: bool) -> Tensor:
        out, lse = window_tiles.forward(q, k, v, tables, scale, once=once)
        if any(ctx.needs_input_grad[:3]):
            ctx.save_for_backward(q, k, v, out, lse)
            ctx.rest = tables, scale, once
        return out.to(q.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, lse = ctx.saved_tensors
        tables, scale, once = ctx.rest
        dq, dk, dv = window_tiles.backward(grads[0], q, k, v, out, lse, tables, scale, once=once)
        return dq, dk, dv, None, None, None
