"""Decoding with LSH v2: keeps only the part of the past that later queries can attend to.

Each level keeps its last keys uncompressed, as far back as the next query's band reaches; the earlier pools that are
among the last `window` of their code in some round (`held`); and for each stratum a sample, a count and a sum. Several
tokens at once go through the stages of `forward` (`estimate`). For one token those stages would be mostly launch
overhead on a few hundred numbers, so it gathers what it attends to and computes one softmax (`token`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from attentions.common.stream import Stream
from attentions.lsh_v2.estimate import Past
from attentions.lsh_v2.held import Held
from attentions.lsh_v2.levels import Level, band_start, pooled
from attentions.lsh_v2.merge import merged_attention
from attentions.lsh_v2.pools import Pools
from attentions.lsh_v2.token import token_attention

if TYPE_CHECKING:
    from attentions.lsh_v2.attention import LSHv2
    from attentions.lsh_v2.samples import Reservoir


class LSHv2Stream(Stream):
    """The decoding state of a causal `LSHv2`."""

    def __init__(self, attention: LSHv2, batch: int) -> None:
        super().__init__(attention, batch)
        self._attention = attention
        self._context = None if attention.context is None else attention.context.scan.stream(batch)
        self._levels = [LevelStream(attention, level) for level in attention.levels]

    def advance(
        self, q: Float[Tensor, "B H T D"], k: Float[Tensor, "B G T D"], v: Float[Tensor, "B G T E"]
    ) -> Float[Tensor, "B H T E"]:
        wide = [x.to(torch.promote_types(x.dtype, torch.float32)) for x in (q, k, v)]
        out = torch.cat([level.extend(*wide) for level in self._levels], 1)
        if self._context is not None and self._attention.context is not None:
            out = out + self._attention.context.gated(self._context.extend(*wide))
        return out.to(q.dtype)

    def select(self, index: Int[Tensor, " B"]) -> None:
        for level in self._levels:
            level.reorder(index)
        if self._context is not None:
            self._context.reorder(index)

    @property
    def state_bytes(self) -> int:
        return sum(x.bytes for x in self._levels) + (0 if self._context is None else self._context.state_bytes)


class LevelStream:
    """The state of one level: keys and values from position `begin` on, the pools before it, and the strata."""

    def __init__(self, attention: LSHv2, level: Level) -> None:
        self._attention, self._level = attention, level
        self._begin = 0
        self._near: list[Tensor] = []  # keys and values
        self._held = Held(attention.settings.rounds, attention.hashing.buckets**2, attention.settings.window)
        self._reservoir: Reservoir | None = None

    def extend(
        self, q: Float[Tensor, "B H T D"], k: Float[Tensor, "B G T D"], v: Float[Tensor, "B G T E"]
    ) -> Float[Tensor, "B heads T E"]:
        """Append T tokens and return their rows of this level's heads."""
        level, new = self._level, [x[:, self._level.kv_heads].flatten(0, 1) for x in (k, v)]
        keys, values = (torch.cat(x, 1) for x in zip(self._near, new, strict=True)) if self._near else new
        past = Past(self._begin, keys, values, self._held.pools, self._reservoir)
        begin = band_start(past.end, level.factor, self._attention.settings.local)
        leaving = (begin - past.begin) // level.factor  # pools outside the next query's band
        out = self._several(q, past, leaving) if q.shape[2] > 1 else self._one(q, past, leaving)
        self._near = [x[:, begin - past.begin :].detach().clone() for x in (keys, values)]
        self._begin = begin
        return out

    def reorder(self, index: Int[Tensor, " B"]) -> None:
        """As `Stream.reorder`."""
        rows = (index[:, None] * self._level.rows + torch.arange(self._level.rows, device=index.device)).flatten()
        self._near = [x[rows] for x in self._near]
        self._held.keep_rows(rows)
        self._reservoir = None if self._reservoir is None else self._reservoir.rows(rows)

    @property
    def bytes(self) -> int:
        """Bytes of everything held."""
        strata = () if self._reservoir is None else self._reservoir.tensors()
        return self._held.bytes + sum(x.numel() * x.itemsize for x in (*self._near, *strata))

    def _several(self, q: Tensor, past: Past, leaving: int) -> Tensor:
        """Several tokens, through the stages of `forward`, which also return the new state."""
        one = self._attention.level_estimate(self._level, q, past)
        parts, pools, reservoir = one.all_parts()
        stay = past.keys.shape[1] // self._level.factor - leaving
        self._held.take(pools.keep(pools.index.shape[1] - stay).detach())
        self._reservoir = None if reservoir is None else reservoir.detach()
        return one.by_head(merged_attention(parts, self._attention.scale)[0])

    def _one(self, q: Tensor, past: Past, leaving: int) -> Tensor:
        """One token, through `token_attention`; a pool that leaves its band, if any, is hashed with its queries."""
        a, level = self._attention, self._level
        of_heads = q[:, level.heads].squeeze(2).unflatten(1, (level.rows, -1)).flatten(0, 1)  # (X, R, D)
        keys, values = (pooled(x[:, : leaving * level.factor].detach(), level.factor) for x in (past.keys, past.values))
        by_row = torch.cat((of_heads, keys), 1).unflatten(0, (len(q), -1))
        of_q, of_k = a.hashing(by_row, level.kv_heads).flatten(1, 2).split((level.group, leaving), 2)
        out = token_attention(of_heads, past, self._held.find(of_q), level.factor, a.scale)
        if leaving:
            index = torch.full((len(keys), 1), past.begin // level.factor, device=q.device)
            self._held.append(Pools(keys, values, of_k, index))
        if past.end % a.settings.block == 0:
            reservoir = a.level_estimate(level, q, past).next_reservoir()
            self._reservoir = None if reservoir is None else reservoir.detach()
        return out.unflatten(0, (len(q), -1)).flatten(1, 2).unsqueeze(2)
