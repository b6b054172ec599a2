"""Inputs of a recurrence over a bounded state, and how it runs over the past and, if not causal, the future.

    h[t] = exp(step[t] · rate) · h[t - 1] + step[t] · x[t] ⊗ b[t]        y[t] = c[t] · h[t]

The state h (E, S) of a key/value head is read by each of its R query heads with its own c. Without a causal mask the
recurrence runs in both directions, and the diagonal, which both include, is subtracted once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Terms:
    """The recurrence's inputs. `rate` is negative, `step` positive. K is G or 1; axes marked # may be 1."""

    c: Float[Tensor, "B K R N S"]
    b: Float[Tensor, "B K M S"]
    x: Float[Tensor, "B G M E"]
    step: Float[Tensor, "B G M #E"]
    rate: Float[Tensor, "#G #E #S"]

    @property
    def queries(self) -> int:
        """N, the last of the M positions."""
        return self.c.shape[3]

    def reversed(self) -> Terms:
        """The recurrence from the last position back to the first query."""
        b, x, step = (y[:, :, -self.queries :].flip(2) for y in (self.b, self.x, self.step))
        return Terms(self.c.flip(3), b, x, step, self.rate)

    def diagonal(self) -> Float[Tensor, "B G R N E"]:
        """Contribution of each position to its own output."""
        b, x, step = (y[:, :, None, -self.queries :] for y in (self.b, self.x, self.step))
        return (self.c * b).sum(-1, keepdim=True) * (step * x)

    def double(self) -> Terms:
        """The same in float64."""
        return Terms(*(y.double() for y in (self.c, self.b, self.x, self.step, self.rate)))


def both_ways(terms: Terms, scan: Callable[[Terms], Tensor], *, causal: bool) -> Float[Tensor, "B G R N E"]:
    """Run `scan` over the past and, unless `causal`, over the future too."""
    out = scan(terms)
    return out if causal else out + scan(terms.reversed()).flip(3) - terms.diagonal()


def at_least_float32(dtype: torch.dtype) -> torch.dtype:
    """Dtype of the states: the given one, but at least float32."""
    return torch.promote_types(dtype, torch.float32)
