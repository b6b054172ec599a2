"""Two strategies share the global memory: the first takes its part, the second the rest of what it ranks highest."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from attentions.base import require
from bmrt.strategies.base import Strategy, View


class Hybrid(Strategy):
    """`primary` chooses ratio·room tokens, `secondary` fills what is left from those not chosen yet.

    No token counts twice and all room is used: a strategy that has evidence (a score above -inf) for too few tokens
    leaves its part to the other. Raises ValueError for a ratio outside [0, 1] and for strategies that accumulate.
    """

    def __init__(self, primary: Strategy, secondary: Strategy, *, ratio: float = 0.5) -> None:
        require(0 <= ratio <= 1, "hybrid_ratio", ratio, "from 0 to 1: the first strategy's share of the global memory")
        for part in (primary, secondary):
            require(not part.accumulates, "hybrid part", type(part).__name__, "a strategy that keeps no running scores")
        windows = [part.observes for part in (primary, secondary)]
        self.observes = None if None in windows else max(window for window in windows if window is not None)
        self.primary, self.secondary, self.ratio = primary, secondary, ratio

    def score(self, view: View) -> Float[Tensor, "B G M"]:
        first, second = (self._ranked(part, view) for part in (self.primary, self.secondary))
        share = (self.ratio * view.room.double()).round()[..., None]
        taken = first < share  # ranks from 0; tokens without evidence stand at infinity
        order = torch.where(taken, first, share + _ranks(second))
        lost = second.isinf() & ~taken  # the second has nothing to say of these: by the first's order, after all others
        return -torch.where(lost, 2 * view.tokens + _ranks(first), order)

    def _ranked(self, part: Strategy, view: View) -> Float[Tensor, "B G M"]:
        """Places from 0 for the best candidate; infinity for what is none and for what has no evidence."""
        scores = part.score(_narrowed(view, part)).masked_fill(~view.candidates, -math.inf)
        if scores.isnan().any():
            raise ValueError(f"{type(part).__name__} gave scores that are not numbers (NaN)")
        return _ranks(-scores).masked_fill(scores.isneginf(), math.inf)


def _ranks(values: Float[Tensor, "B G M"]) -> Float[Tensor, "B G M"]:
    """The place of each value in ascending order, later tokens first among equals."""
    order = values.flip(-1).sort(dim=-1, stable=True).indices
    places = torch.empty_like(values)
    places.scatter_(
        -1, order, torch.arange(values.shape[-1], device=values.device, dtype=values.dtype).expand_as(order)
    )
    return places.flip(-1)


def _narrowed(view: View, part: Strategy) -> View:
    """The view with as many queries as this part observes."""
    if part.observes is None or part.observes >= view.queries.shape[2]:
        return view
    return replace(view, queries=view.queries[:, :, view.queries.shape[2] - part.observes :])
