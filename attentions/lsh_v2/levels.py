"""Hierarchical compression: how much each head pools keys, and which keys a query attends to compressed.

A pool of factor f is the mean of f consecutive keys and values, positions f·p to f·p + f - 1. A query at position t
attends to the keys of its band uncompressed and, outside it, only to pools. The band starts at a multiple of f and
holds the `local` most recent keys and up to f - 1 more, so that every past key is either in the band or in one complete
pool before it, never both. Without causality the band extends as far ahead.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Level:
    """Consecutive query heads with one factor, the same number for each of their key/value heads."""

    factor: int
    heads: slice
    kv_heads: slice

    @property
    def rows(self) -> int:
        """Number of key/value heads of this level."""
        return self.kv_heads.stop - self.kv_heads.start

    @property
    def group(self) -> int:
        """Number of query heads per key/value head."""
        return (self.heads.stop - self.heads.start) // self.rows


def levels_of(heads: int, kv_heads: int, factors: Sequence[int]) -> list[Level]:
    """Return the levels in order of heads; head h has factor factors[h·len(factors)//heads].

    A factor that changes within the group of a key/value head splits that group into parts, each its own level.
    """
    group = heads // kv_heads
    edges = [-(-i * heads // len(factors)) for i in range(len(factors) + 1)]
    found = []
    for factor, (start, end) in zip(factors, pairwise(edges), strict=True):
        whole = {-(-start // group) * group, end // group * group}
        cuts = sorted({start, end} | {cut for cut in whole if start < cut < end})
        found += [Level(factor, slice(a, b), slice(a // group, -(-b // group))) for a, b in pairwise(cuts)]
    return found


@dataclass(frozen=True)
class Band:
    """For each query, the positions [start, stop) it attends to uncompressed, and the pools outside them.

    `before` is the number of pools that end before the band, `after` the first pool that starts after it.
    """

    start: Int[Tensor, " Q"]
    stop: Int[Tensor, " Q"]
    before: Int[Tensor, " Q"]
    after: Int[Tensor, " Q"]


def band(at: Int[Tensor, " Q"], keys: int, factor: int, local: int, *, causal: bool) -> Band:
    """The bands of queries at positions `at` among `keys` keys."""
    before = (at + 1 - local).clamp(min=0) // factor
    if causal:
        return Band(before * factor, at + 1, before, torch.full_like(before, keys // factor))
    after = (at + local + factor - 1) // factor
    return Band(before * factor, (after * factor).clamp(max=keys), before, after.clamp(max=keys // factor))


def band_start(at: int, factor: int, local: int) -> int:
    """The first position of the band of a query at position `at`."""
    return max(at + 1 - local, 0) // factor * factor


def pooled(x: Float[Tensor, "*batch L W"], factor: int) -> Float[Tensor, "*batch P W"]:
    """Means of `factor` consecutive vectors; an incomplete last pool is left out."""
    if factor == 1:
        return x
    whole = x.shape[-2] // factor * factor
    return x[..., :whole, :].unflatten(-2, (-1, factor)).mean(-2)
