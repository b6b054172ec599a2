"""Ranks keys by the number of hash tables that put them in a query's bucket, without computing a softmax.

The score is the number of tables in which a key matches *one* query, taking its best query: matching different queries
in different tables is several weak signals, not a strong one.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from attentions.common.settings import require
from bmrt.strategies.base import Strategy, View
from bmrt.strategies.tables import Tables
from bmrt.strategies.ties import require_tie, tie_break
from bmrt.strategies.trail import TRAIL, require_trail, trailed


class FrequencyRank(Strategy):
    """Number of tables in which a key matches its best query; ties are broken by `tie` (see `ties`)."""

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
        require_tie(tie)
        require_trail(trail)
        self.tables = Tables(bits=bits, tables=tables, seed=seed)
        self.tie, self.observes, self.trail = tie, observes, trail

    def score(self, view: View) -> Float[Tensor, "B G M"]:
        return trailed(self.tables.met(view) + 0.5 * tie_break(self.tie, view), view, self.trail)
