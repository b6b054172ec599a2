"""Combines two strategies in one global memory: the first takes its share, and the second fills the rest."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from attentions.common.settings import require
from bmrt.strategies.base import Strategy, View


class Hybrid(Strategy):
    """`primary` selects ratio·room tokens, and `secondary` fills the rest from those not selected yet.

    No token counts twice and all room is used: if a strategy has evidence (a score above -inf) for too few tokens, the
    other gets its share. Raises ValueError for a ratio outside [0, 1] and for strategies that accumulate.
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
        taken = first < share  # ranks start at 0; tokens without evidence have rank infinity
        order = torch.where(taken, first, share + _ranks(second))
        lost = second.isinf() & ~taken  # no evidence from the second: last, in the first's order
        return -torch.where(lost, 2 * view.tokens + _ranks(first), order)

    def _ranked(self, part: Strategy, view: View) -> Float[Tensor, "B G M"]:
        """Rank from 0 for the best candidate; infinity for other tokens and those without evidence."""
        scores = part.score(_narrowed(view, part)).masked_fill(~view.candidates, -math.inf)
        if scores.isnan().any():
            raise ValueError(f"{type(part).__name__} gave NaN scores")
        return _ranks(-scores).masked_fill(scores.isneginf(), math.inf)


def _ranks(values: Float[Tensor, "B G M"]) -> Float[Tensor, "B G M"]:
    """Return each value's rank in ascending order; among equal values, later tokens rank first."""
    order = values.flip(-1).sort(dim=-1, stable=True).indices
    places = torch.empty_like(values)
    places.scatter_(
        -1, order, torch.arange(values.shape[-1], device=values.device, dtype=values.dtype).expand_as(order)
    )
    return places.flip(-1)


def _narrowed(view: View, part: Strategy) -> View:
    """Return the view with only as many queries as this part observes."""
    if part.observes is None or part.observes >= view.queries.shape[2]:
        return view
    return replace(view, queries=view.queries[:, :, view.queries.shape[2] - part.observes :])
