"""Backward passes of autograd functions that cannot be differentiated themselves."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

Gradients = tuple[Tensor | None, ...]


def first_order(backward: Callable[..., Gradients]) -> Callable[..., Gradients]:
    """Turn `backward(ctx, saved, *grads)` into the backward of an autograd function that rejects second derivatives.

    `saved` is `ctx.saved_tensors`, unpacked once because gradient checkpointing allows no more. Every input that the
    gradient depends on must be in it. A gradient taken with `create_graph=True` is correct; differentiating it raises
    RuntimeError. torch's `once_differentiable` does not connect that error to the inputs: a second derivative that also
    reaches them along another path would silently miss a term.
    """

    @functools.wraps(backward)
    def wrapper(ctx: Any, *grads: Tensor | None) -> Gradients:
        saved = ctx.saved_tensors
        with torch.no_grad():
            found = backward(ctx, saved, *grads)
        if not torch.is_grad_enabled():
            return found
        sources = [x for x in (*grads, *saved) if x is not None and x.requires_grad]
        return _Refusing.apply(ctx.name(), len(found), *found, *sources) if sources else found  # type: ignore

    return wrapper


def differentiated(*tensors: Tensor) -> bool:
    """Whether a call on these tensors must be differentiable, in backward or forward mode."""
    backward = torch.is_grad_enabled() and any(x.requires_grad for x in tensors)
    return backward or any(forward_ad.unpack_dual(x).tangent is not None for x in tensors)


class _Refusing(torch.autograd.Function):
    """Return the first `count` tensors, with a graph to all the others whose backward raises."""

    @staticmethod
    def forward(ctx: Any, name: str, count: int, *tensors: Tensor | None) -> Gradients:
        ctx.of = name.removesuffix("Backward").strip("_")
        return tensors[:count]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Gradients:
        raise RuntimeError(f"{ctx.of} has no second derivative: its gradient cannot be differentiated again")
