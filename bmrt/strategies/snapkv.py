"""SnapKV (Li et al. 2024, https://arxiv.org/abs/2404.14469), as a baseline.

Mean softmax weight from a window of queries, smoothed over neighbouring tokens so that the surroundings of a match are
kept. Averaged over the heads that share a key, because the paper does not cover grouped heads.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import avg_pool1d

from attentions.common.settings import require
from bmrt.strategies.base import Strategy, View
from bmrt.strategies.mass import received, require_backend


class SnapKV(Strategy):
    """Mass from the latest `observes` queries, averaged over `kernel` neighbouring tokens (an odd number)."""

    def __init__(self, *, observes: int = 32, kernel: int = 5, backend: str = "eager") -> None:
        require(observes >= 1, "observes", observes, "an integer of at least 1")
        require(kernel >= 1 and kernel % 2 == 1, "kernel", kernel, "an odd number of at least 1")
        require_backend(backend)
        self.observes, self.kernel, self.backend = observes, kernel, backend

    def score(self, view: View) -> Float[Tensor, "B G M"]:
        mass = received(view, self.backend).masked_fill(~view.candidates, 0.0)
        return avg_pool1d(mass, self.kernel, stride=1, padding=self.kernel // 2)
