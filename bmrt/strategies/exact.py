"""Attention mass received from an observation window: the exact measure that the others approximate.

Scores are the softmax weights that the latest `observes` queries give each token, summed over them and over the heads
that share a key. Every candidate is seen by every one of those queries, so none is favoured for having been there
longer; summing over a whole sequence's queries instead keeps almost only its first quarter.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from attentions.base import require
from bmrt.mass import received, require_backend
from bmrt.strategies.base import Strategy, View
from bmrt.strategies.trail import TRAIL, require_trail, trailed


class Exact(Strategy):
    """Mass from the latest `observes` queries, or from the question where one is shown; passed on to `trail` tokens."""

    def __init__(self, *, observes: int = 32, trail: int = TRAIL, backend: str = "eager") -> None:
        require(observes >= 1, "observes", observes, "an integer of at least 1")
        require_trail(trail)
        require_backend(backend)
        self.observes, self.trail, self.backend = observes, trail, backend

    def score(self, view: View) -> Float[Tensor, "B G M"]:
        return trailed(received(view, self.backend), view, self.trail)
