"""Controls: supports as large as a hash method's, chosen without looking at the keys.

The error of a hash method is meaningful only next to these. A sliding window is `bit_sampling` with `bits=0`.
"""

from __future__ import annotations

from typing import Unpack

from jaxtyping import Float, Int
from torch import Tensor

from attentions.buckets.attention import BucketAttention, BucketSettings
from attentions.buckets.hashing import PositionHash


class RandomSupport(BucketAttention):
    """Random codes from position, head and seed: buckets of the same size with random members."""

    paper = "https://arxiv.org/abs/2007.14062"  # BigBird, which introduced random keys

    def __init__(self, heads: int, head_dim: int, *, bits: int = 8, **settings: Unpack[BucketSettings]) -> None:
        super().__init__(heads, head_dim, **settings)
        self.bits = bits
        self.hash = PositionHash(self.kv_heads, head_dim, bits=bits, tables=self.tables, seed=self.seed)
        self.codes_count = 2**bits

    def codes(self, x: Float[Tensor, "B H N D"], at: Int[Tensor, "B N"], *, query: bool) -> Int[Tensor, "tables B H N"]:
        return self.hash.at(at, x.shape[1], query=query)
