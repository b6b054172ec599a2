"""Attention to the most recent keys of a query's own hash codes: the base of the bucket methods.

In each table a query attends to the `window` most recent keys whose code equals its own, and always to the
`local` most recent keys, itself included; the support is the union. Membership depends on the past alone,
so causality is strict and decoding needs a bounded state. Without causality it is the `window` nearest on
each side.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from attentions.base import Cost, Problem, Stream, require
from attentions.buckets import Windows
from attentions.reference import nearest, query_positions
from attentions.support import SupportAttention, window_total
from attentions.window_attention import attend, by_key_head, sorted_windows, window_pairs
from attentions.window_tiles import BLOCK


class BucketAttention(SupportAttention):
    """Settings of every bucket method; a subclass adds its `codes`.

    `tables` independent hash tables; `window` keys of each; `local` most recent keys that always join;
    `duplicates` "once" counts a key that several tables find once, "allow" as often as it is found.
    """

    claimed_time = "n log n"
    codes_count: int  # distinct codes of a table

    def __init__(
        self,
        heads: int,
        head_dim: int,
        *,
        tables: int = 1,
        window: int = 128,
        local: int = 64,
        duplicates: str = "once",
        **shape: Any,
    ) -> None:
        super().__init__(heads, head_dim, **shape)
        for name, value in (("tables", tables), ("window", window), ("local", local)):
            require(value >= 1, name, value, "an integer of at least 1")
        require(duplicates in ("once", "allow"), "duplicates", duplicates, "once or allow")
        self.tables, self.window, self.local = tables, window, local
        self.once = duplicates == "once"
        self.kernel = ""

    @abstractmethod
    def codes(self, x: Float[Tensor, "B H N D"], at: Int[Tensor, "B N"], *, query: bool) -> Int[Tensor, "tables B H N"]:
        """Codes of queries or keys that stand at positions `at`, counted from each row's first real one."""

    def forward(
        self,
        q: Float[Tensor, "B H N D"],
        k: Float[Tensor, "B G M D"],
        v: Float[Tensor, "B G M E"],
        *,
        first: Int[Tensor, " B"] | None = None,
    ) -> Float[Tensor, "B H N E"]:
        out, _, self.kernel = attend(q, k, v, self.windows(q, k, first=first), self.scale, once=self.once)
        return out

    def windows(
        self,
        q: Float[Tensor, "B H N D"],
        k: Float[Tensor, "B G M D"],
        *,
        first: Int[Tensor, " B"] | None = None,
    ) -> list[Windows]:
        """The local window and one of each table, for sequences and key/value heads as rows of X = B·G."""
        query_codes, key_codes = self._codes(q, k, first)
        real = None if first is None else first.to(q.device).repeat_interleave(self.kv_heads)
        heads = self.heads // self.kv_heads
        return [
            sorted_windows(of_q, of_k, heads, codes, size, causal=self.causal, real=real)
            for of_q, of_k, (codes, size) in zip(query_codes, key_codes, self.rings, strict=True)
        ]

    @property
    def rings(self) -> list[tuple[int, int]]:
        """Codes and window of the local table, whose code is always zero, and of each hash table."""
        return [(1, self.local), *[(self.codes_count, self.window)] * self.tables]

    def multiplicity(
        self,
        q: Float[Tensor, "B H N D"],
        k: Float[Tensor, "B G M D"],
        *,
        first: Int[Tensor, " B"] | None = None,
        rows: Int[Tensor, " R"] | None = None,
    ) -> Int[Tensor, "B H R M"]:
        N, M = q.shape[2], k.shape[2]
        at = query_positions(N, M, rows, q.device)[:, None]
        key = torch.arange(M, device=q.device)
        real = torch.zeros(q.shape[0], dtype=torch.long, device=q.device) if first is None else first.to(q.device)
        allowed = ((key >= real[:, None])[:, None] & (at >= real[:, None, None]))[:, None]
        query_codes, key_codes = self._codes(q, k, first)
        group = self.heads // self.kv_heads
        total = torch.zeros(q.shape[0], self.heads, len(at), M, dtype=torch.int16, device=q.device)
        for of_q, of_k, (_, size) in zip(query_codes, key_codes, self.rings, strict=True):
            of_q = of_q.view(q.shape[0], self.heads, N)
            of_q = of_q if rows is None else of_q[:, :, rows.to(q.device)]
            of_k = of_k.view(q.shape[0], self.kv_heads, M).repeat_interleave(group, dim=1)
            same = (of_q.unsqueeze(-1) == of_k.unsqueeze(2)) & allowed
            total += nearest(same & (key <= at), None if self.causal else same & (key > at), size)
        return total.clamp(max=1) if self.once else total

    def comparisons(self, q: Float[Tensor, "B H N D"], k: Float[Tensor, "B G M D"]) -> Int[Tensor, "B H"]:
        pairs = window_pairs(self.windows(q, k), once=self.once)
        return pairs.unflatten(1, (-1, q.shape[2])).sum(-1).view(q.shape[0], self.heads)

    def cost(self, problem: Problem) -> Cost:
        """Each query meets at most tables·window + local keys, as many again after it without causality, and never
        more than there are; with duplicates no table can find more than there are. Where all keys have one code, that
        is no bound but the number, and windows lie within the widest. The kernel computes whole tiles: a block of
        sorted queries spans its own windows, at most N·window + block·M pairs a table. Hashing is not counted. The
        state is that of `stream`: keys, values and a position of four bytes in each slot, a counter for each code.
        """
        p = problem
        sides = 1 if p.causal else 2
        tiles = self.tables * min(p.keys, sides * self.window + BLOCK) + min(p.keys, sides * self.local + BLOCK)
        heads, width = p.batch * p.heads, p.head_dim + p.value_dim
        sizes = [size for _, size in self.rings]
        union = [max(sizes) if self.codes_count == 1 else sum(sizes)]
        met = [window_total(p.queries, p.keys, x, causal=p.causal) for x in (union if self.once else sizes)]
        slots = self.tables * self.codes_count * self.window + self.local
        counters = self.tables * self.codes_count + 1
        return Cost(
            flops=2 * heads * p.queries * tiles * width,
            comparisons=heads * sum(met),
            state_bytes=p.batch * p.kv_heads * (slots * (width * p.dtype.itemsize + 4) + 4 * counters),
        )

    def stream(self, batch: int) -> Stream | None:
        if not self.causal:
            return None
        from attentions.bucket_stream import BucketStream  # the stream needs this class

        return BucketStream(self, batch)

    def _codes(
        self, q: Float[Tensor, "B H N D"], k: Float[Tensor, "B G M D"], first: Int[Tensor, " B"] | None
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Codes of queries (X, Q) and keys (X, M) for each of `rings`."""
        B, N, M = q.shape[0], q.shape[2], k.shape[2]
        skipped = torch.zeros(B, dtype=torch.long, device=q.device) if first is None else first.to(q.device)
        at = torch.arange(M, device=q.device) - skipped[:, None]
        of_q = [by_key_head(x, self.kv_heads).flatten(0, 1) for x in self.codes(q, at[:, M - N :], query=True)]
        of_k = [x.flatten(0, 1) for x in self.codes(k, at, query=False)]
        return [torch.zeros_like(of_q[0]), *of_q], [torch.zeros_like(of_k[0]), *of_k]
