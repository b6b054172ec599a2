"""A random choice, the control that every strategy has to beat."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from attentions.hashing import splitmix
from bmrt.strategies.base import Strategy, View, require_seed


class RandomKeep(Strategy):
    """A number drawn from seed, layer, head and position alone.

    A token keeps its draw for ever, so that however the sequence is cut into chunks, the same tokens stay, and all
    tokens of a sequence are equally likely to be among them.
    """

    def __init__(self, *, seed: int = 0) -> None:
        require_seed(seed)
        self.seed = seed

    def score(self, view: View) -> Float[Tensor, "B G M"]:
        heads = torch.arange(view.positions.shape[1], device=view.positions.device)[:, None]
        stream = splitmix(splitmix(heads + 1) + view.layer + (self.seed << 16))
        return (splitmix(stream ^ view.positions) >> 11).double() / 2**52
