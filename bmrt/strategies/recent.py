"""Attention sinks plus recent window (StreamingLLM, Xiao et al. 2023, https://arxiv.org/abs/2309.17453), as a baseline.

The anchors are the sinks; the global memory extends the local window.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from bmrt.strategies.base import Strategy, View


class Recent(Strategy):
    """Scores tokens by position, later ones higher."""

    def score(self, view: View) -> Float[Tensor, "B G M"]:
        return view.positions.double()
