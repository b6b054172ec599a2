"""MagicPIG's sampling (Chen et al. 2024, https://arxiv.org/abs/2410.16179) turned into a rule of what to keep.

The paper evicts nothing: it samples, for each decoding step, keys that share a code with the query in at least two of
its tables, which happens with probability u = 1 - (1 - p^K)^L - L·p^K·(1 - p^K)^(L - 1), p = 1 - θ/π, for K bits and
L tables. Here what the tables sample for the observing queries is kept, likelier keys first where room is short, and
the likeliest of the rest where room is left. Hence a baseline by that name, not the paper.
"""

from __future__ import annotations

import math

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from attentions.base import require
from bmrt.strategies.base import Strategy, View, wide
from bmrt.strategies.tables import Tables, centred
from bmrt.strategies.ties import require_tie, tie_break
from bmrt.strategies.trail import TRAIL, require_trail, trailed


class MagicPIG(Strategy):
    """Sampled keys before the others, each by the probability of being sampled for its best query; then by `tie`."""

    def __init__(
        self,
        *,
        bits: int = 12,
        tables: int = 20,
        tie: str = "l2",
        observes: int = 32,
        trail: int = TRAIL,
        seed: int = 0,
    ) -> None:
        require(observes >= 1, "observes", observes, "an integer of at least 1")
        require(tables >= 2, "num_tables", tables, "at least 2: a key is sampled if it meets a query in two tables")
        require_tie(tie)
        require_trail(trail)
        self.tables = Tables(bits=bits, tables=tables, seed=seed)
        self.tie, self.observes, self.trail = tie, observes, trail

    def score(self, view: View) -> Float[Tensor, "B G M"]:
        sampled = self.tables.met(view) >= 2
        # The likelihood grows with the cosine, so the best query is the one of the greatest cosine.
        likelihood = sampling_probability(cosine(view).amax(2), self.tables.bits, self.tables.tables)
        return trailed(sampled + likelihood + 1e-6 * tie_break(self.tie, view), view, self.trail)


def cosine(view: View) -> Float[Tensor, "B G Q M"]:
    """Between each observing query and each centred key; 0 where either is the zero vector."""
    return normalize(wide(view.grouped), dim=-1) @ normalize(centred(view), dim=-1).mT


def sampling_probability(cos: Float[Tensor, "*shape"], bits: int, tables: int) -> Float[Tensor, "*shape"]:
    """u: how likely a key is to share `bits` sign bits with the query in at least two of `tables` tables.

    `cos` is first rounded into [-1, 1], where its arc cosine is defined.
    """
    meets = (1 - cos.clamp(-1, 1).acos() / math.pi) ** bits
    misses = 1 - meets
    return (1 - misses**tables - tables * meets * misses ** (tables - 1)).clamp(0, 1)
