"""Reversible layers: the backward pass computes each layer's input from its output, so that none is stored.

Gomez et al. 2017, RevNet, https://arxiv.org/abs/1707.04585; for transformers Kitaev et al. 2020, Reformer,
https://arxiv.org/abs/2001.04451, section 3: y1 = x1 + attend(x2), y2 = x2 + feed(y1), both streams d_model wide.
Activation memory does not grow with depth; a training step costs one more forward pass. What a loss reads between two
layers (halting after each pass) is made inside as well, so that the state it reads need not be kept for it.

Layers must be functions of their input and weights alone: no dropout, no state that a forward pass changes. Inputs are
recovered up to rounding, so that an attention that selects keys may select a borderline one differently.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from attentions.derivatives import Gradients, first_order

Streams = tuple[Float[Tensor, "B N C"], Float[Tensor, "B N C"]]


@dataclass(frozen=True)
class Layer:
    """Both halves of a layer as functions, each with the weights that it uses."""

    attend: Callable[[Tensor], tuple[Tensor, Tensor]]
    feed: Callable[[Tensor], Tensor]
    attend_weights: Sequence[Tensor]
    feed_weights: Sequence[Tensor]

    @property
    def weights(self) -> Sequence[Tensor]:
        """Those of both halves."""
        return (*self.attend_weights, *self.feed_weights)


@dataclass(frozen=True)
class Reading:
    """What is read between two layers: a function of the state that the streams stand for, and its weights."""

    look: Callable[[Tensor], Tensor]
    weights: Sequence[Tensor]


def residual(stack: Sequence[Layer | Reading], x1: Tensor, x2: Tensor) -> tuple[Tensor, ...]:
    """The one residual stream of ordinary transformers, x2, in the form of the two; x1 is what it was in between."""
    total, read = x1.new_zeros((), dtype=torch.float32), []
    for part in stack:
        if isinstance(part, Reading):
            read.append(part.look(x2))
            continue
        delta, auxiliary = part.attend(x2)
        x1 = x2 + delta
        x2 = x1 + part.feed(x1)
        total = total + auxiliary
    return x1, x2, total, *read


def ordinary(stack: Sequence[Layer | Reading], x1: Tensor, x2: Tensor) -> tuple[Tensor, ...]:
    """Two streams after the layers, the sum of the auxiliary losses, and each reading, by plain differentiable code."""
    total, read = x1.new_zeros((), dtype=torch.float32), []
    for part in stack:
        if isinstance(part, Reading):
            read.append(part.look(middle(x1, x2)))
            continue
        delta, auxiliary = part.attend(x2)
        x1 = x1 + delta
        x2 = x2 + part.feed(x1)
        total = total + auxiliary
    return x1, x2, total, *read


def reversible(stack: Sequence[Layer | Reading], x1: Tensor, x2: Tensor) -> tuple[Tensor, ...]:
    """`ordinary` with equal outputs and gradients that stores nothing between the layers."""
    weights = {id(w): w for part in stack for w in part.weights}
    return _Reversible.apply(stack, x1, x2, *weights.values())  # type: ignore[return-value]


def middle(x1: Float[Tensor, "B N C"], x2: Float[Tensor, "B N C"]) -> Float[Tensor, "B N C"]:
    """The state that two streams stand for."""
    return (x1 + x2) / 2


class _Reversible(torch.autograd.Function):
    """Weights are inputs, so that their gradients go the ordinary way: through hooks, scalers and reducers."""

    @staticmethod
    def forward(
        ctx: Any, stack: Sequence[Layer | Reading], x1: Tensor, x2: Tensor, *weights: Tensor
    ) -> tuple[Tensor, ...]:
        y1, y2, total, *read = ordinary(stack, x1, x2)
        ctx.stack, ctx.weights, ctx.device = stack, weights, x1.device.type
        ctx.autocast = torch.get_autocast_dtype(ctx.device) if torch.is_autocast_enabled(ctx.device) else None
        ctx.save_for_backward(y1, y2, *weights)  # the weights so that a change in between is noticed
        return y1, y2, total, *read

    @staticmethod
    @first_order
    def backward(ctx: Any, saved: tuple[Tensor, ...], *upstream: Tensor) -> Gradients:
        (y1, y2, *_), (d1, d2, d_total, *d_read) = saved, upstream
        sums: dict[int, Tensor] = {}

        def through(call: Callable, x: Tensor, given: tuple[Tensor, ...], weights: Sequence[Tensor]) -> tuple:
            """What a call makes of x, and the gradient of x; those of its weights are added to the sums."""
            x = x.detach().requires_grad_()
            with torch.enable_grad(), _autocast(ctx):
                outputs = call(x)
            live = [(o, g) for o, g in zip(_tuple(outputs), given, strict=True) if o.requires_grad]
            wanted = [w for w in weights if w.requires_grad]
            outs, grads = zip(*live, strict=True)
            found = torch.autograd.grad(outs, [x, *wanted], grads, allow_unused=True)
            for weight, grad in zip(wanted, found[1:], strict=True):
                if grad is not None:
                    sums[id(weight)] = sums[id(weight)] + grad if id(weight) in sums else grad
            return _tuple(outputs)[0].detach(), found[0]

        for part in reversed(ctx.stack):
            if isinstance(part, Reading):
                _, grad = through(part.look, middle(y1, y2), (d_read.pop(),), part.weights)
                d1, d2 = d1 + grad / 2, d2 + grad / 2
                continue
            delta, grad = through(part.feed, y1, (d2,), part.feed_weights)
            y2, d1 = y2 - delta, d1 + grad
            delta, grad = through(part.attend, y2, (d1, d_total), part.attend_weights)
            y1, d2 = y1 - delta, d2 + grad
        return None, d1, d2, *(sums.get(id(weight)) for weight in ctx.weights)


def _tuple(outputs: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return outputs if isinstance(outputs, tuple) else (outputs,)


def _autocast(ctx: Any) -> torch.autocast:
    """The precision of the forward pass."""
    return torch.autocast(ctx.device, dtype=ctx.autocast, enabled=ctx.autocast is not None)
