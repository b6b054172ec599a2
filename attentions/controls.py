"""Controls: supports as large as a hash method's that know nothing of the keys.

No error of a hash method means anything beside theirs. A sliding window is `bit_sampling` with `bits=0`.
"""

from __future__ import annotations

from typing import Any

from jaxtyping import Float, Int
from torch import Tensor

from attentions.bucket_attention import BucketAttention
from attentions.hashing import PositionHash


class RandomSupport(BucketAttention):
    """Codes drawn at random from position, head and seed: buckets of the same size, with random members."""

    paper = "https://arxiv.org/abs/2007.14062"  # BigBird, whose random keys these are

    def __init__(self, heads: int, head_dim: int, *, bits: int = 8, **settings: Any) -> None:
        super().__init__(heads, head_dim, **settings)
        self.bits = bits
        self.hash = PositionHash(self.kv_heads, head_dim, bits=bits, tables=self.tables, seed=self.seed)
        self.codes_count = 2**bits

    def codes(self, x: Float[Tensor, "B H N D"], at: Int[Tensor, "B N"], *, query: bool) -> Int[Tensor, "tables B H N"]:
        return self.hash.at(at, x.shape[1], query=query)
