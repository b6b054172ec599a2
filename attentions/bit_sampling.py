"""Bit-sampling LSH attention: a code is a sample of the signs of a vector's own coordinates.

Indyk and Motwani 1998, "Approximate nearest neighbors", https://doi.org/10.1145/276698.276876, applied to vectors
thresholded at zero. It needs no multiplications and suits keys whose information is in the signs of their coordinates,
as in models with binary or ternary weights.
"""

from __future__ import annotations

from typing import Unpack

from jaxtyping import Float, Int
from torch import Tensor

from attentions.buckets.attention import BucketAttention, BucketSettings
from attentions.buckets.hashing import BitSamplingHash, resolve_bits


class BitSampling(BucketAttention):
    """A code is the signs of `bits` coordinates of q or k; None derives `bits` from `max_len` and `bucket`.

    `bucket` is the number of keys per bucket that None aims for. With `balanced`, `prepare` moves the thresholds from
    zero to the medians of a calibration sample.
    """

    paper = "https://doi.org/10.1145/276698.276876"

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
        self.hash = BitSamplingHash(self.kv_heads, head_dim, bits=self.bits, tables=self.tables, seed=self.seed)
        self.codes_count = 2**self.bits

    @property
    def learns(self) -> bool:
        return self.balanced

    def prepare(self, q: Float[Tensor, "B H N D"], k: Float[Tensor, "B G M D"], v: Float[Tensor, "B G M E"]) -> None:
        if self.balanced:
            self.hash.balance(k)

    def codes(self, x: Float[Tensor, "B H N D"], at: Int[Tensor, "B N"], *, query: bool) -> Int[Tensor, "tables B H N"]:
        return self.hash(x)
