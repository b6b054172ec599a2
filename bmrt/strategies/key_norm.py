"""Keys of small norm stay (Devoto et al. 2024, https://arxiv.org/abs/2406.11430), as a baseline without queries."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from bmrt.strategies.base import Strategy, View, wide


class KeyNorm(Strategy):
    """Minus the norm of each key: the paper finds that keys of small norm receive much attention."""

    def score(self, view: View) -> Float[Tensor, "B G M"]:
        return -wide(view.choices).norm(dim=-1)
