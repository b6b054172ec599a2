"""H2O, the heavy-hitter oracle (Zhang et al. 2023, https://arxiv.org/abs/2306.14048), as a baseline.

A token's score is the total softmax weight it has ever received. This favours older tokens, a bias that `exact` avoids;
it is kept here because it is part of the method.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from bmrt.strategies.base import Strategy, View
from bmrt.strategies.mass import received, require_backend


class H2O(Strategy):
    """Mass accumulated from every query since a token arrived."""

    observes = None
    accumulates = True

    def __init__(self, *, backend: str = "eager") -> None:
        require_backend(backend)
        self.backend = backend

    def score(self, view: View) -> Float[Tensor, "B G M"]:
        return view.carried + received(view, self.backend)
