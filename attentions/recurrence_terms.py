"""What a recurrence over a bounded state is given, and how it runs over the past and, if asked, the future.

    h[t] = exp(step[t] · rate) · h[t - 1] + step[t] · x[t] ⊗ b[t]        y[t] = c[t] · h[t]

The state h (E, S) of a key/value head is read by each of its R query heads with a c of its own. Without a causal
mask the recurrence runs both ways, and the diagonal, which both count, is taken off once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Terms:
    """The recurrence's inputs; `rate` is negative, `step` positive. K is G, or 1 for all, as axes with # may be."""

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
        """What each position adds to its own output."""
        b, x, step = (y[:, :, None, -self.queries :] for y in (self.b, self.x, self.step))
        return (self.c * b).sum(-1, keepdim=True) * (step * x)

    def double(self) -> Terms:
        """The same in float64."""
        return Terms(*(y.double() for y in (self.c, self.b, self.x, self.step, self.rate)))


def both_ways(terms: Terms, scan: Callable[[Terms], Tensor], *, causal: bool) -> Float[Tensor, "B G R N E"]:
    """`scan` over the past, and over the future too unless `causal`."""
    out = scan(terms)
    return out if causal else out + scan(terms.reversed()).flip(3) - terms.diagonal()


def at_least_float32(dtype: torch.dtype) -> torch.dtype:
    """The precision that states are kept in."""
    return torch.promote_types(dtype, torch.float32)
