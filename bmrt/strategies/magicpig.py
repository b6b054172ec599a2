"""MagicPIG's sampling (Chen et al. 2024, https://arxiv.org/abs/2410.16179) turned into a selection rule.

The paper evicts nothing: for each decoding step, it samples keys that share a code with the query in at least two of
its tables, which happens with probability u = 1 - (1 - p^K)^L - L·p^K·(1 - p^K)^(L - 1), p = 1 - θ/π, for K bits and L
tables. Here, the keys that the tables sample for the observing queries are kept, more likely keys first if room is
short, and the most likely other keys if room is left. It is therefore a baseline by that name, not the paper's method.
"""

from __future__ import annotations

import math

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from attentions.common.settings import require
from bmrt.strategies.base import Strategy, View, wide
from bmrt.strategies.tables import Tables, centred
from bmrt.strategies.ties import require_tie, tie_break
from bmrt.strategies.trail import TRAIL, require_trail, trailed


class MagicPIG(Strategy):
    """Ranks sampled keys first, then by the probability of being sampled for their best query, then by `tie`."""

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
        # The probability grows with the cosine, so the best query is the one with the largest cosine.
        likelihood = sampling_probability(cosine(view).amax(2), self.tables.bits, self.tables.tables)
        return trailed(sampled + likelihood + 1e-6 * tie_break(self.tie, view), view, self.trail)


def cosine(view: View) -> Float[Tensor, "B G Q M"]:
    """Cosine between each observing query and each centred key; 0 if either is zero."""
    return normalize(wide(view.grouped), dim=-1) @ normalize(centred(view), dim=-1).mT


def sampling_probability(cos: Float[Tensor, "*shape"], bits: int, tables: int) -> Float[Tensor, "*shape"]:
    """u, the probability that a key shares `bits` sign bits with the query in at least two of `tables` tables.

    `cos` is clamped to [-1, 1], where the arc cosine is defined.
    """
    meets = (1 - cos.clamp(-1, 1).acos() / math.pi) ** bits
    misses = 1 - meets
    return (1 - misses**tables - tables * meets * misses ** (tables - 1)).clamp(0, 1)
