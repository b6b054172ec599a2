"""SimHash LSH attention: a code is the signs of random projections, so a bucket is a cone of directions.

Charikar 2002, "Similarity estimation techniques from rounding algorithms", https://doi.org/10.1145/509907.509965: two
vectors at angle θ agree in a bit with probability 1 - θ/π.
"""

from __future__ import annotations

from typing import Unpack

from jaxtyping import Float, Int
from torch import Tensor

from attentions.buckets.attention import BucketAttention, BucketSettings
from attentions.buckets.hashing import SimHash, resolve_bits


class SimHashAttention(BucketAttention):
    """`bits` projections per table; None derives `bits` from `max_len` for buckets of about `bucket` keys.

    With `balanced`, `prepare` moves each projection's threshold to its median on a calibration sample.
    """

    paper = "https://doi.org/10.1145/509907.509965"

    def __init__(
        self,
        heads: int,
        head_dim: int,
        *,
        bits: int | None = 8,
        bucket: int = 256,
        balanced: bool = False,
        **settings: Unpack[BucketSettings],
    ) -> None:
        super().__init__(heads, head_dim, **settings)
        self.bits = resolve_bits(bits, self.max_len, bucket)
        self.balanced = balanced
        self.hash = SimHash(self.kv_heads, head_dim, bits=self.bits, tables=self.tables, seed=self.seed)
        self.codes_count = 2**self.bits

    @property
    def learns(self) -> bool:
        return self.balanced

    def prepare(self, q: Float[Tensor, "B H N D"], k: Float[Tensor, "B G M D"], v: Float[Tensor, "B G M E"]) -> None:
        if self.balanced:
            self.hash.balance(k)

    def codes(self, x: Float[Tensor, "B H N D"], at: Int[Tensor, "B N"], *, query: bool) -> Int[Tensor, "tables B H N"]:
        return self.hash(x)
