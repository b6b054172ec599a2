"""Runs a recurrence over pieces of a long sequence; backward recomputes each piece instead of storing it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from attentions.common.derivatives import Gradients, first_order
from transformer_vq.precision import in_own_dtype


def segmented(
    step: Callable[..., tuple[Tensor, Tensor]], length: int, state: Tensor, rate: Tensor, *sequences: Tensor
) -> tuple[Tensor, Tensor]:
    """Apply step(state, rate, *pieces) -> (out, state) to pieces of `length` along the second-to-last axis.

    Forward stores only the state before each piece; backward runs each piece again. Memory beyond inputs and output is
    that of one piece and of the states.
    """
    return _Segmented.apply(step, length, state, rate, *sequences)  # type: ignore[return-value]


class _Segmented(torch.autograd.Function):
    @staticmethod
    @in_own_dtype
    def forward(
        ctx: Any, step: Callable[..., tuple[Tensor, Tensor]], length: int, state: Tensor, rate: Tensor, *whole: Tensor
    ) -> tuple[Tensor, Tensor]:
        starts, outs = [], []
        for pieces in zip(*(x.split(length, dim=-2) for x in whole), strict=True):
            starts.append(state)
            out, state = step(state, rate, *pieces)
            outs.append(out)
        ctx.step, ctx.length, ctx.count = step, length, len(whole)
        ctx.save_for_backward(rate, *whole, *(starts if any(ctx.needs_input_grad) else []))
        return torch.cat(outs, dim=-2), state.clone()

    @staticmethod
    @first_order
    @in_own_dtype
    def backward(ctx: Any, saved: tuple[Tensor, ...], *grads: Tensor) -> Gradients:
        (rate, *rest), (of_out, of_state) = saved, grads
        whole, starts = rest[: ctx.count], rest[ctx.count :]
        pieces = list(zip(*(x.split(ctx.length, dim=-2) for x in (of_out, *whole)), strict=True))
        found, of_rate = [], torch.zeros_like(rate)
        for start, (of_piece, *inputs) in zip(reversed(starts), reversed(pieces), strict=True):
            with torch.enable_grad():
                leaves = [x.detach().requires_grad_() for x in (start, rate, *inputs)]
                outputs = ctx.step(*leaves)
            of_state, more, *of_inputs = torch.autograd.grad(
                outputs, leaves, (of_piece, of_state), allow_unused=True, materialize_grads=True
            )
            of_rate += more
            found.append(of_inputs)
        joined = (torch.cat(x, dim=-2) for x in zip(*reversed(found), strict=True))
        return None, None, of_state, of_rate, *joined
