"""Counts the query-key comparisons of a model's attention by layer and head, and compares them with full attention.

Full attention scores every key at or before a query. A selecting attention scores fewer, and how many depends on the
sequence, so each call is counted on its own q and k (`Attention.comparisons`). Padding is excluded from both counts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from attentions.base import attended_pairs
from lsh_bitnet.padding import pieces

if TYPE_CHECKING:
    from attentions import Attention


@dataclass
class LayerCount:
    """Comparisons of one layer, summed over calls and sequences: `made` and `full`, each by query head."""

    made: Int[Tensor, " H"]
    full: Int[Tensor, " H"]
    calls: int = 0

    @property
    def ratio(self) -> float:
        """Comparisons made, as a fraction of full attention's."""
        return int(self.made.sum()) / int(self.full.sum())


class ComparisonLog:
    """Comparison counts by layer; `ratio` is over all layers. `reset` clears them."""

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
        """Add one call of a layer's attention. A call with padding only makes no comparisons and is not counted."""
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
        """Clear all counts."""
        self.layers.clear()

    @property
    def made(self) -> int:
        """Comparisons over all layers and heads."""
        return sum(int(layer.made.sum()) for layer in self.layers.values())

    @property
    def full(self) -> int:
        """Comparisons that full attention would have made instead."""
        return sum(int(layer.full.sum()) for layer in self.layers.values())

    @property
    def ratio(self) -> float:
        """`made` / `full`. Raises ValueError if nothing has been counted."""
        if not self.full:
            raise ValueError("there is no ratio yet: run the model on at least one token while counting")
        return self.made / self.full

    def summary(self) -> dict[str, Any]:
        """Return the counts for a result's JSON file: both sums, their ratio, and the ratio by layer."""
        return {
            "comparisons": self.made,
            "full_comparisons": self.full,
            "comparison_ratio": self.ratio,
            "by_layer": {str(layer): counts.ratio for layer, counts in sorted(self.layers.items())},
        }

    def rows(self) -> list[dict[str, Any]]:
        """Return one row per layer and head: layer, head, comparisons, full, and their ratio."""
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
    """Yield the whole batch, or each row without its padding; skips rows without real queries."""
    if spans is None:
        if q.shape[0] and q.shape[2]:
            yield q, k
        return
    for row, queries, keys in pieces(spans, q.shape[2], k.shape[2]):
        one = slice(row, row + 1)
        if queries.start < queries.stop:
            yield q[one, :, queries], k[one, :, keys]
