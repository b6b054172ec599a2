"""Decoding with LSH v2: of the past only what a later query can still meet.

A level keeps its last keys uncompressed, as far back as the next query's band reaches; the pools before them that
are among the last `window` of their code in some round; and of each stratum a sample, a count and a sum. Pools that
left every window are dropped when those at hand have doubled, so a token costs a constant share of that.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from attentions.base import Stream
from attentions.lsh_v2.attention import LSHv2
from attentions.lsh_v2.estimate import Past
from attentions.lsh_v2.levels import Level, band
from attentions.lsh_v2.merge import merged_attention


class LSHv2Stream(Stream):
    """The decoding state of a causal `LSHv2`."""

    def __init__(self, attention: LSHv2, batch: int) -> None:
        self._attention = attention
        self._context = None if attention.context is None else attention.context.scan.stream(batch)
        self._pasts: list[Past] = []
        self._kept = [0] * len(attention.levels)  # pools after the last dropping

    def extend(
        self, q: Float[Tensor, "B H T D"], k: Float[Tensor, "B G T D"], v: Float[Tensor, "B G T E"]
    ) -> Float[Tensor, "B H T E"]:
        a = self._attention
        wide = [x.to(torch.promote_types(x.dtype, torch.float32)) for x in (q, k, v)]
        outs, pasts = [], []
        for i, level in enumerate(a.levels):
            keys, values = (x[:, level.kv_heads].flatten(0, 1) for x in wide[1:])
            if self._pasts:
                past = self._pasts[i]
                keys, values = torch.cat((past.keys, keys), 1), torch.cat((past.values, values), 1)
                past = replace(past, keys=keys, values=values)
            else:
                past = Past(0, keys, values, None, None)
            out, past = self._level(level, wide[0], past)
            outs.append(out)
            pasts.append(self._without_dead(i, past))
        self._pasts, out = pasts, torch.cat(outs, 1)
        if self._context is not None and a.context is not None:
            out = out + a.context.gated(self._context.extend(*wide))
        return out.to(q.dtype)

    def reorder(self, index: Int[Tensor, " B"]) -> None:
        self._pasts = [
            past.rows((index[:, None] * level.rows + torch.arange(level.rows, device=index.device)).flatten())
            for level, past in zip(self._attention.levels, self._pasts, strict=bool(self._pasts))
        ]
        if self._context is not None:
            self._context.reorder(index)

    @property
    def state_bytes(self) -> int:
        held = [x for past in self._pasts for x in past.tensors()]
        own = sum(x.numel() * x.itemsize for x in held)
        return own + (0 if self._context is None else self._context.state_bytes)

    def _level(self, level: Level, q: Tensor, past: Past) -> tuple[Tensor, Past]:
        """A level's output for the new tokens, and its state after them."""
        s, f = self._attention.settings, level.factor
        one = self._attention.level_estimate(level, q, past)
        parts, pools, reservoir = one.all_parts()
        out, _ = merged_attention(parts, self._attention.scale)
        begin = int(band(torch.tensor([one.keys]), one.keys + 1, f, s.local, causal=True).start)
        passed = pools.keep(pools.index.shape[1] - (one.keys - past.begin) // f + (begin - past.begin) // f)
        kept = (past.keys[:, begin - past.begin :], past.values[:, begin - past.begin :])
        found = Past(begin, *kept, passed, reservoir)
        return one.by_head(out), found.detach()

    def _without_dead(self, i: int, past: Past) -> Past:
        s = self._attention.settings
        if past.pools is None or past.pools.index.shape[1] <= 2 * self._kept[i]:
            return past
        pools = past.pools  # at first the caller's memory, which this copies
        alive = torch.zeros_like(pools.index, dtype=torch.bool)
        for codes in pools.codes[: s.rounds]:
            alive |= newest(codes, s.window) & (pools.index >= 0)
        self._kept[i] = most = int(alive.sum(1).max()) if alive.numel() else 0
        # A stable sort moves what is alive to the right end; -1 fills up on the left.
        place = torch.sort(alive.int(), dim=1, stable=True).indices[:, alive.shape[1] - most :]
        dead = ~alive.gather(1, place)
        pools = pools.select(place)
        codes, index = pools.codes.masked_fill(dead, -1), pools.index.masked_fill(dead, -1)
        return replace(past, pools=replace(pools, codes=codes, index=index))


def newest(codes: Int[Tensor, "X L"], count: int) -> Tensor:
    """Which places are among the last `count` of their code."""
    ordered, order = torch.sort(codes, dim=1, stable=True)
    end = torch.searchsorted(ordered, ordered, right=True)
    late = end - torch.arange(codes.shape[1], device=codes.device) <= count
    return torch.zeros_like(late).scatter(1, order, late)
