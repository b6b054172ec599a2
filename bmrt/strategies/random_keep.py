"""Random selection, the control that every strategy has to beat."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from attentions.buckets.hashing import splitmix
from bmrt.strategies.base import Strategy, View, require_seed


class RandomKeep(Strategy):
    """Scores drawn from seed, layer, head, and position only.

    A token's score never changes, so the same tokens are kept however the sequence is split into chunks, and all tokens
    of a sequence are equally likely to be kept.
    """

    def __init__(self, *, seed: int = 0) -> None:
        require_seed(seed)
        self.seed = seed

    def score(self, view: View) -> Float[Tensor, "B G M"]:
        heads = torch.arange(view.positions.shape[1], device=view.positions.device)[:, None]
        stream = splitmix(splitmix(heads + 1) + view.layer + (self.seed << 16))
        return (splitmix(stream ^ view.positions) >> 11).double() / 2**52
