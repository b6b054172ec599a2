"""H2O, the heavy-hitter oracle (Zhang et al. 2023, https://arxiv.org/abs/2306.14048), as a baseline.

A token's score is all the softmax weight it has ever received. That favours tokens that have been there long: the bias
that `exact` avoids, kept here because it is what the method is.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from bmrt.mass import received, require_backend
from bmrt.strategies.base import Strategy, View


class H2O(Strategy):
    """Accumulated mass from every query since a token came in."""

    observes = None
    accumulates = True

    def __init__(self, *, backend: str = "eager") -> None:
        require_backend(backend)
        self.backend = backend

    def score(self, view: View) -> Float[Tensor, "B G M"]:
        return view.carried + received(view, self.backend)
