"""How many query-key comparisons a model's attention makes, by layer and head, next to full attention's: counted.

Full attention scores every key at or before a query. A selecting attention scores fewer, and how many depends on
what is in the sequence, so each call is counted on its own q and k (`Attention.comparisons`). Padding counts on
neither side.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from attentions import Attention
from attentions.base import attended_pairs
from lsh_bitnet.padding import pieces


@dataclass
class LayerCount:
    """Scores of one layer, summed over calls and sequences: `made` and `full`, each by query head."""

    made: Int[Tensor, " H"]
    full: Int[Tensor, " H"]
    calls: int = 0

    @property
    def ratio(self) -> float:
        """Comparisons made, of those full attention makes."""
        return int(self.made.sum()) / int(self.full.sum())


class ComparisonLog:
    """Counts by layer; `ratio` over all of them. `reset` forgets."""

    def __init__(self) -> None:
        self.layers: dict[int, LayerCount] = {}

    def count(
        self,
        layer: int,
        attention: Attention,
        q: Float[Tensor, "B H N D"],
        k: Float[Tensor, "B G M D"],
        spans: Int[Tensor, "B 2"] | None,
    ) -> None:
        """Add one call of a layer's attention. A call on padding alone makes no comparison and is not counted."""
        with torch.no_grad():
            counts = [
                (
                    attention.comparisons(own_q, own_k).sum(0).cpu(),
                    len(own_q) * attended_pairs(own_q.shape[2], own_k.shape[2], attention.causal),
                )
                for own_q, own_k in _unpadded(q, k, spans)
            ]
        if not counts:
            return
        found = self.layers.setdefault(layer, LayerCount(_zeros(q), _zeros(q)))
        for made, full in counts:
            found.made += made
            found.full += full
        found.calls += 1

    def reset(self) -> None:
        """Start again from nothing."""
        self.layers.clear()

    @property
    def made(self) -> int:
        """Comparisons of all layers and heads."""
        return sum(int(layer.made.sum()) for layer in self.layers.values())

    @property
    def full(self) -> int:
        """Comparisons that full attention would have made in their place."""
        return sum(int(layer.full.sum()) for layer in self.layers.values())

    @property
    def ratio(self) -> float:
        """`made` / `full`. Raises ValueError before anything was counted."""
        if not self.full:
            raise ValueError("there is no ratio yet: run the model on at least one token while counting")
        return self.made / self.full

    def summary(self) -> dict[str, Any]:
        """What a result's JSON says of them: both sums, their ratio, and the ratio by layer."""
        return {
            "comparisons": self.made,
            "full_comparisons": self.full,
            "comparison_ratio": self.ratio,
            "by_layer": {str(layer): counts.ratio for layer, counts in sorted(self.layers.items())},
        }

    def rows(self) -> list[dict[str, Any]]:
        """A line a layer and head: layer, head, comparisons, full and their ratio."""
        return [
            {"layer": layer, "head": head, "comparisons": made, "full": full, "ratio": made / full}
            for layer, counts in sorted(self.layers.items())
            for head, (made, full) in enumerate(zip(counts.made.tolist(), counts.full.tolist(), strict=True))
        ]


def _zeros(q: Float[Tensor, "B H N D"]) -> Int[Tensor, " H"]:
    return torch.zeros(q.shape[1], dtype=torch.int64)


def _unpadded(
    q: Float[Tensor, "B H N D"], k: Float[Tensor, "B G M D"], spans: Int[Tensor, "B 2"] | None
) -> Iterator[tuple[Tensor, Tensor]]:
    """The batch as it is, or its rows one by one without their padding; none where there are no real queries."""
    if spans is None:
        if q.shape[0] and q.shape[2]:
            yield q, k
        return
    for row, queries, keys in pieces(spans, q.shape[2], k.shape[2]):
        one = slice(row, row + 1)
        if queries.start < queries.stop:
            yield q[one, :, queries], k[one, :, keys]
