"""Cost of a call of LSH v2, counted from its settings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from attentions.common.problem import Cost, Problem

if TYPE_CHECKING:
    from attentions.lsh_v2.estimate import EstimateSettings
    from attentions.lsh_v2.hashing import LearnedHash
    from attentions.lsh_v2.levels import Level


def estimate_cost(
    problem: Problem, levels: Sequence[Level], settings: EstimateSettings, hashing: LearnedHash, strata: int
) -> Cost:
    """Cost of the softmax estimate with `strata` samples per query, without the global context.

    Each query attends to at most local + f - 1 keys of the band, rounds·window pools and one sample per stratum;
    without causality, band and windows count twice. FLOPs: 2·(D + E) for each of these, and hashing at 2·D for each of
    rounds·2·hash_dim coordinates of a query or pool. State of a level: the band; pools in some window, with codes and
    position, and room for as many again; the rings; and for each stratum a key, a sum and two numbers.
    """
    p, s = problem, settings
    sides, width, wide = 1 if p.causal else 2, p.head_dim + p.value_dim, max(p.dtype.itemsize, 4)
    hashed = 2 * p.head_dim * hashing.rounds * 2 * hashing.hash_dim
    comparisons = flops = past_flops = state = 0
    for level in levels:
        f, heads, pools = level.factor, level.heads.stop - level.heads.start, p.keys // level.factor
        own = min(pools, sides * s.rounds * s.window)
        comparisons += heads * p.queries * (min(p.keys, sides * (s.local + f - 1)) + own + min(pools, strata))
        flops += hashed * (heads * p.queries + level.rows * pools)
        past_flops += hashed * level.rows * ((p.keys - p.queries) // f)
        codes = s.rounds * hashing.buckets**2
        live = min(pools, codes * s.window)
        slots = (s.local + f) * width * wide + 2 * live * (width * wide + 8 * (hashing.rounds + 1))
        rings = codes * (4 * s.window + 8)
        state += level.rows * (slots + rings + strata * (width * wide + 8 * (hashing.rounds + 3)))
    total = flops + 2 * comparisons * width
    return Cost(p.batch * total, p.batch * comparisons, p.batch * state, p.batch * past_flops)
