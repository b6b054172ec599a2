"""The softmax estimate of one level: band, buckets and samples, in stages that can be timed separately.

`Past` is everything a level needs to know about earlier tokens: nothing in `forward`, and the state when decoding.
Whole sequences and the pieces given to a stream, except single tokens, run through the same code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Num
from torch import Tensor

from attentions.lsh_v2.levels import Band, Level, band, pooled
from attentions.lsh_v2.merge import Part
from attentions.lsh_v2.pools import Pools
from attentions.lsh_v2.samples import NOWHERE, Reservoir, Sampler, Samples, sample_windows
from attentions.lsh_v2.windows import band_windows, coming_windows, recent_windows

if TYPE_CHECKING:
    from attentions.common.windows import Windows
    from attentions.lsh_v2.hashing import LearnedHash


@dataclass(frozen=True)
class Past:
    """State of a level before the current queries, including their keys.

    `keys` and `values` are uncompressed, from position `begin` on. `pools` are the earlier pools that a window may
    still reach. `reservoir` holds the strata of all keys before the block that contains the next position.
    """

    begin: int
    keys: Float[Tensor, "X L D"]
    values: Float[Tensor, "X L E"]
    pools: Pools | None
    reservoir: Reservoir | None

    @property
    def end(self) -> int:
        """The position after the last."""
        return self.begin + self.keys.shape[1]


@dataclass(frozen=True)
class EstimateSettings:
    """Settings of a level's estimate: window per bucket, keys in the band, block of positions that share samples."""

    rounds: int
    window: int
    local: int
    block: int
    causal: bool
    scale: float


class Estimate:
    """One level of one call: queries at positions `at` and the keys before and, if not causal, after them."""

    def __init__(
        self,
        level: Level,
        settings: EstimateSettings,
        hashing: LearnedHash,
        sampler: Sampler | None,
        q: Float[Tensor, "B H N D"],
        past: Past,
    ) -> None:
        self.level, self.settings, self.hashing, self.sampler = level, settings, hashing, sampler
        self.past, self.batch = past, q.shape[0]
        self.keys = past.end  # M
        self.q = q[:, level.heads].unflatten(1, (level.rows, -1)).flatten(2, 3).flatten(0, 1)  # (X, Q, D)
        self.at = torch.arange(self.keys - q.shape[2], self.keys, device=q.device).repeat(level.group)
        self.heads = torch.arange(level.kv_heads.start, level.kv_heads.stop, device=q.device).repeat(self.batch)
        self.band: Band = band(self.at, self.keys, level.factor, settings.local, causal=settings.causal)

    def by_head(self, x: Num[Tensor, "X Q *rest"]) -> Num[Tensor, "B heads N *rest"]:
        """Reshape this level's per-query data to query heads and positions."""
        positions = len(self.at) // self.level.group
        return x.unflatten(1, (-1, positions)).unflatten(0, (self.batch, -1)).flatten(1, 2)

    def pool(self) -> tuple[Tensor, Tensor]:
        """Keys and values pooled by the level's factor."""
        return pooled(self.past.keys, self.level.factor), pooled(self.past.values, self.level.factor)

    def codes(self, keys: Float[Tensor, "X L D"]) -> tuple[Int[Tensor, "rounds X Q"], Int[Tensor, "rounds X L"]]:
        """Codes of queries and of pooled keys."""
        found = []
        for x in (self.q, keys):
            by_head = x.unflatten(0, (self.batch, -1))
            found.append(self.hashing(by_head, self.level.kv_heads).flatten(1, 2))
        return found[0], found[1]

    def fresh(self, keys: Tensor, values: Tensor, codes: Tensor) -> Pools:
        """The pools of `past.keys` with their indices in the sequence."""
        index = torch.arange(keys.shape[1], device=keys.device) + self.past.begin // self.level.factor
        return Pools(keys, values, codes, index.expand(len(keys), -1).contiguous())

    def reached(self, fresh: Pools) -> Pools:
        """All pools that windows may reach."""
        return fresh if self.past.pools is None else Pools.cat(self.past.pools, fresh)

    def tables(self, of_q: Int[Tensor, "rounds X Q"], pools: Pools) -> list[list[Windows]]:
        """Windows in each round's buckets: pools before the band and, if not causal, those after it."""
        rounds, window = self.settings.rounds, self.settings.window
        if pools.index.shape[1] == 0 or rounds == 0:
            return []
        both = list(zip(of_q[:rounds], pools.codes[:rounds], strict=True))
        before, after = (self._place(pools, limit) for limit in (self.band.before, self.band.after))
        codes = self.hashing.buckets**2
        found = [[recent_windows(q, k, before, window, codes) for q, k in both]]
        return found if self.settings.causal else [*found, [coming_windows(q, k, after, window) for q, k in both]]

    def sample(self, fresh: Pools) -> tuple[Samples, Reservoir] | None:
        """Samples for each block that contains queries, and one more that decoding continues from."""
        if self.sampler is None or (self.past.reservoir is None and fresh.index.shape[1] == 0):
            return None
        per_block = self.settings.block // self.level.factor
        begin = self._block(self.at[0])
        new = fresh
        if self.past.reservoir is not None:  # it already counts what comes before its block
            new = fresh.drop(int(begin) * per_block - self.past.begin // self.level.factor)
        opens = (new.index[0] // per_block + 1 - begin).clamp(min=0)
        blocks = int(self._block(self.at[-1] + 1) - begin) + 1
        if not self.settings.causal:
            opens, blocks = torch.zeros_like(opens), 1
        if self.past.reservoir is None and opens[0] >= blocks:  # no block has earlier keys yet
            return None
        coarse = self.hashing.coarse(new.codes)
        return self.sampler.sample(new, coarse, self.heads, opens, blocks, self.past.reservoir)

    def next_reservoir(self) -> Reservoir | None:
        """The reservoir that sampling continues from after these tokens."""
        keys, values = self.pool()
        sampled = self.sample(self.fresh(keys, values, self.codes(keys)[1]))
        return sampled[1] if sampled else self.past.reservoir

    def all_parts(self) -> tuple[list[Part], Pools, Reservoir | None]:
        """Run all stages: return the parts, the pools of `past.keys`, and the reservoir to continue sampling from."""
        keys, values = self.pool()
        of_q, of_k = self.codes(keys)
        fresh = self.fresh(keys, values, of_k)
        pools, sampled = self.reached(fresh), self.sample(fresh)
        samples, reservoir = sampled or (None, self.past.reservoir)
        return self.parts(pools, self.tables(of_q, pools), samples), pools, reservoir

    def parts(self, pools: Pools, tables: list[list[Windows]], samples: Samples | None) -> list[Part]:
        """The disjoint sets of keys that queries attend to, with the band first."""
        level, past, b = self.level, self.past, self.band
        bias = float(torch.tensor(level.factor, dtype=torch.float64).log())
        within = band_windows(b.start - past.begin, b.stop - past.begin, past.keys.shape[1], level.group, len(self.q))
        found = [Part(self.q, past.keys, past.values, [within])]
        found += [Part(self.q, pools.keys, pools.values, side, bias) for side in tables]
        if samples is not None:
            found += self._sample_parts(samples, pools, tables, bias)
        return found

    def _sample_parts(self, samples: Samples, pools: Pools, tables: list[list[Windows]], bias: float) -> list[Part]:
        causal = self.settings.causal
        samples = samples if causal else samples.by_position()
        block = self._block(self.at) - self._block(self.at[0]) if causal else torch.zeros_like(self.at)
        # Weights go into the logit through one more dimension, in which every query is one.
        weight = samples.count.clamp(min=1).to(self.q.dtype).log() / self.settings.scale
        q, k = F.pad(self.q, (0, 1), value=1.0), torch.cat((samples.pools.keys, weight.unsqueeze(-1)), -1)
        none, everything = None, torch.full_like(self.at, NOWHERE)
        sides = [(none, self.band.before)] if causal else [(none, self.band.before), (self.band.after, everything)]
        index = None if self.past.pools is None else pools.index
        found = []
        for side, (start, stop) in enumerate(sides):
            own = tables[side] if tables else []
            made = sample_windows(samples, own, index, block, self.level.group, start, stop)
            found.append(Part(q, k, samples.pools.values, made, bias))
        return found

    def _block(self, at: Tensor) -> Tensor:
        return at // self.settings.block

    def _place(self, pools: Pools, limit: Int[Tensor, " Q"]) -> Int[Tensor, "X positions"]:
        """Number of available pools before pool `limit`; the same for each head."""
        limit = limit[: len(limit) // self.level.group].expand(len(self.q), -1).contiguous()
        return limit if self.past.pools is None else torch.searchsorted(pools.index, limit)
