"""Keeps keys with a small norm (Devoto et al. 2024, https://arxiv.org/abs/2406.11430), a baseline without queries."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from bmrt.strategies.base import Strategy, View, wide


class KeyNorm(Strategy):
    """Negative norm of each key: the paper finds that keys with a small norm receive much attention."""

    def score(self, view: View) -> Float[Tensor, "B G M"]:
        return -wide(view.choices).norm(dim=-1)
