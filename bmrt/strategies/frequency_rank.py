"""Keys ranked by how often a hash table puts them into a query's bucket; no softmax is taken.

What counts is the number of tables in which a key meets *one* query, at its best query: meeting one query here and
another there are two weak signs, not a strong one.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from attentions.base import require
from bmrt.strategies.base import Strategy, View
from bmrt.strategies.tables import Tables
from bmrt.strategies.ties import require_tie, tie_break
from bmrt.strategies.trail import TRAIL, require_trail, trailed


class FrequencyRank(Strategy):
    """Tables in which a key meets its best query; equal counts are ordered by `tie` (see `ties`)."""

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
