"""Bit-sampling LSH attention: a code is a sample of the signs of a vector's own coordinates.

Indyk and Motwani 1998, "Approximate nearest neighbors", https://doi.org/10.1145/276698.276876, on vectors
thresholded at zero. It costs no multiplication, and suits keys whose coordinates carry signs, as in models
with binary or ternary weights.
"""

from __future__ import annotations

from typing import Any

from jaxtyping import Float, Int
from torch import Tensor

from attentions.bucket_attention import BucketAttention
from attentions.hashing import BitSamplingHash, resolve_bits


class BitSampling(BucketAttention):
    """`bits` of the signs of q and k make a code; None derives them from `max_len` for buckets of `bucket` keys.

    With `balanced`, `prepare` moves the thresholds from zero to the medians of a calibration sample.
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
        **settings: Any,
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
