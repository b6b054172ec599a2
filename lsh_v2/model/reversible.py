"""Reversible layers: the backward pass recomputes each layer's input from its output instead of storing it.

Gomez et al. 2017, RevNet, https://arxiv.org/abs/1707.04585; for transformers Kitaev et al. 2020, Reformer,
https://arxiv.org/abs/2001.04451, section 3: y1 = x1 + attend(x2), y2 = x2 + feed(y1), both streams d_model wide.
Activation memory does not grow with depth; a training step costs one more forward pass. Values that a loss reads
between two layers (halting after each pass) are also computed inside, so that the states they read need not be stored.

Layers must depend on their input and weights alone: no dropout, and no state that a forward pass changes. Inputs are
recovered up to rounding, so an attention that selects keys may select a borderline key differently.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from attentions.common.derivatives import Gradients, first_order

Streams = tuple[Float[Tensor, "B N C"], Float[Tensor, "B N C"]]


@dataclass(frozen=True)
class Layer:
    """The two halves of a layer as functions, each with the weights that it uses."""

    attend: Callable[[Tensor], tuple[Tensor, Tensor]]
    feed: Callable[[Tensor], Tensor]
    attend_weights: Sequence[Tensor]
    feed_weights: Sequence[Tensor]

    @property
    def weights(self) -> Sequence[Tensor]:
        """The weights of both halves."""
        return (*self.attend_weights, *self.feed_weights)


@dataclass(frozen=True)
class Reading:
    """A value read between two layers: a function of the streams' mean state, and the weights that it uses."""

    look: Callable[[Tensor], Tensor]
    weights: Sequence[Tensor]


def residual(stack: Sequence[Layer | Reading], x1: Tensor, x2: Tensor) -> tuple[Tensor, ...]:
    """Ordinary residual layers behind the two-stream interface: x2 is the stream, x1 an intermediate value."""
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
    """Run two-stream layers with plain autograd; returns both streams, the auxiliary loss, and the readings."""
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
    """Like `ordinary`, with equal outputs and gradients, but stores no activations between the layers."""
    weights = {id(w): w for part in stack for w in part.weights}
    return _Reversible.apply(stack, x1, x2, *weights.values())  # type: ignore[return-value]


def middle(x1: Float[Tensor, "B N C"], x2: Float[Tensor, "B N C"]) -> Float[Tensor, "B N C"]:
    """Return the state that two streams represent."""
    return (x1 + x2) / 2


class _Reversible(torch.autograd.Function):
    """Takes the weights as inputs, so that their gradients pass through hooks, scalers, and reducers as usual."""

    @staticmethod
    def forward(
        ctx: Any, stack: Sequence[Layer | Reading], x1: Tensor, x2: Tensor, *weights: Tensor
    ) -> tuple[Tensor, ...]:
        y1, y2, total, *read = ordinary(stack, x1, x2)
        ctx.stack, ctx.weights, ctx.device = stack, weights, x1.device.type
        ctx.autocast = torch.get_autocast_dtype(ctx.device) if torch.is_autocast_enabled(ctx.device) else None
        ctx.save_for_backward(y1, y2, *weights)  # saving the weights makes autograd detect in-place changes
        return y1, y2, total, *read

    @staticmethod
    @first_order
    def backward(ctx: Any, saved: tuple[Tensor, ...], *upstream: Tensor) -> Gradients:
        (y1, y2, *_), (d1, d2, d_total, *d_read) = saved, upstream
        sums: dict[int, Tensor] = {}

        def through(call: Callable, x: Tensor, given: tuple[Tensor, ...], weights: Sequence[Tensor]) -> tuple:
            """Return a call's output and the gradient of x; gradients of the weights are added to `sums`."""
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
    """Restore the autocast setting of the forward pass."""
    return torch.autocast(ctx.device, dtype=ctx.autocast, enabled=ctx.autocast is not None)
