"""Hash tables of a layer: which keys share a code with which observing query.

Codes are signs of seeded Gaussian projections (SimHash, `attentions.buckets.hashing`): a key at angle θ to a query
shares a code of `bits` bits with probability (1 - θ/π)^bits in each table. Every layer and head has its own
projections.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from attentions.buckets.hashing import SimHash
from attentions.common.settings import require
from bmrt.strategies.base import View, require_seed, wide

MAX_TABLES = 2**15 - 1  # maximum number of tables; matches are counted in 16 bits
QUERIES = 32  # queries compared at a time; affects memory only, not results


class Tables:
    """`tables` hash tables of `bits` bits. Raises ValueError for settings that SimHash rejects."""

    def __init__(self, *, bits: int, tables: int, seed: int) -> None:
        require_seed(seed)
        require(tables <= MAX_TABLES, "num_tables", tables, f"at most {MAX_TABLES}")
        self.bits, self.tables, self.seed = bits, tables, seed
        self._drawn: dict[tuple[int, int, int, torch.device], SimHash] = {}
        SimHash(1, 1, bits=bits, tables=tables, seed=seed)

    def met(self, view: View) -> Float[Tensor, "B G M"]:
        """Return the number of tables in which each key shares its code with its best observing query."""
        keys = centred(view)
        family = self._family(view.layer, keys)
        return most_matches(family(view.grouped), family(keys)).to(keys.dtype)

    def _family(self, layer: int, keys: Float[Tensor, "B G M D"]) -> SimHash:
        place = (layer, keys.shape[1], keys.shape[3], keys.device)
        if place not in self._drawn:
            seed = self.seed + (layer << 20)
            family = SimHash(keys.shape[1], keys.shape[3], bits=self.bits, tables=self.tables, seed=seed)
            self._drawn[place] = family.to(keys.device)
        return self._drawn[place]


def centred(view: View) -> Float[Tensor, "B G M D"]:
    """Return the keys that may be kept, minus the mean of the candidates among them.

    Subtracting the same vector from all keys changes no attention weight; left in, it would bias all their codes.
    """
    keys, chosen = wide(view.choices), view.candidates.unsqueeze(-1)
    mean = (keys * chosen).sum(2, keepdim=True) / chosen.sum(2, keepdim=True).clamp(min=1)
    return keys - mean


def most_matches(asked: Int[Tensor, "tables B G Q"], stored: Int[Tensor, "tables B G M"]) -> Int[Tensor, "B G M"]:
    """Count equal codes over tables for each key and its best query."""
    # Narrow integers, because this is memory-bound: codes of up to 15 bits, and counts of up to 255 tables.
    code = torch.int16 if int(max(asked.max(), stored.max())) < 2**15 else torch.int32
    number = torch.uint8 if len(asked) < 2**8 else torch.int16
    asked, stored = asked.to(code), stored.to(code)
    best = torch.zeros(stored.shape[1:], dtype=number, device=stored.device)
    for some in asked.split(QUERIES, dim=-1):
        count = torch.zeros(*some.shape[1:], stored.shape[-1], dtype=number, device=stored.device)
        for query_codes, key_codes in zip(some, stored, strict=True):
            count += query_codes.unsqueeze(-1) == key_codes.unsqueeze(-2)
        best = torch.maximum(best, count.amax(2))
    return best
