"""Exact attention mass from an observation window, the measure that the other strategies approximate.

The score of a token is the softmax weight it gets from the latest `observes` queries, summed over them and over the
heads that share a key. Every one of these queries sees every candidate, so older tokens have no advantage; summing over
all queries of a sequence instead keeps almost only its first quarter.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from attentions.common.settings import require
from bmrt.strategies.base import Strategy, View
from bmrt.strategies.mass import received, require_backend
from bmrt.strategies.trail import TRAIL, require_trail, trailed


class Exact(Strategy):
    """Mass from the latest `observes` queries, or from the question if one is shown; extended to `trail` tokens."""

    def __init__(self, *, observes: int = 32, trail: int = TRAIL, backend: str = "eager") -> None:
        require(observes >= 1, "observes", observes, "an integer of at least 1")
        require_trail(trail)
        require_backend(backend)
        self.observes, self.trail, self.backend = observes, trail, backend

    def score(self, view: View) -> Float[Tensor, "B G M"]:
        return trailed(received(view, self.backend), view, self.trail)
