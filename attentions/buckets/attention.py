"""Base of the bucket methods: attention to the most recent keys that share a hash code with the query.

In each table a query attends to the `window` most recent keys with the same code as its own, and always to the `local`
most recent keys, including itself; the support is the union. Membership depends only on the past, so causality is
strict and decoding needs a bounded state. Without causality, the window is the `window` nearest keys on each side.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Unpack

import torch
from jaxtyping import Float, Int
from torch import Tensor

from attentions.buckets.support import SupportAttention, window_total
from attentions.buckets.window_attention import attend, by_key_head, sorted_windows, window_pairs
from attentions.buckets.window_tiles import BLOCK
from attentions.common.problem import Cost, Problem
from attentions.common.reference import nearest, query_positions
from attentions.common.settings import Shape, require

if TYPE_CHECKING:
    from attentions.common.stream import Stream
    from attentions.common.windows import Windows


class BucketSettings(Shape, total=False):
    """The settings that every bucket method takes beside `heads` and `head_dim`."""

    tables: int
    window: int
    local: int
    duplicates: str


class BucketAttention(SupportAttention):
    """Settings shared by all bucket methods; a subclass adds its `codes`.

    `tables`: number of independent hash tables. `window`: keys attended to per table. `local`: most recent keys, always
    attended to. `duplicates`: "once" counts a key found by several tables once, "allow" counts it each time it is
    found.
    """

    claimed_time = "n log n"
    codes_count: int  # distinct codes per table

    def __init__(
        self,
        heads: int,
        head_dim: int,
        *,
        tables: int = 1,
        window: int = 128,
        local: int = 64,
        duplicates: str = "once",
        **shape: Unpack[Shape],
    ) -> None:
        super().__init__(heads, head_dim, **shape)
        for name, value in (("tables", tables), ("window", window), ("local", local)):
            require(value >= 1, name, value, "an integer of at least 1")
        require(duplicates in ("once", "allow"), "duplicates", duplicates, "once or allow")
        self.tables, self.window, self.local = tables, window, local
        self.once = duplicates == "once"

    @abstractmethod
    def codes(self, x: Float[Tensor, "B H N D"], at: Int[Tensor, "B N"], *, query: bool) -> Int[Tensor, "tables B H N"]:
        """Return the codes of queries or keys at positions `at`, counted from each row's first real position."""

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
        """Return the local window and one window per table; rows of X = B·G are sequence and key/value head pairs."""
        real = None if first is None else first.to(q.device).repeat_interleave(self.kv_heads)
        return self._sorted(*self._codes(q, k, first), real)

    def _sorted(self, query_codes: list[Tensor], key_codes: list[Tensor], real: Tensor | None) -> list[Windows]:
        heads = self.heads // self.kv_heads
        return [
            sorted_windows(of_q, of_k, heads, codes, size, causal=self.causal, real=real)
            for of_q, of_k, (codes, size) in zip(query_codes, key_codes, self.rings, strict=True)
        ]

    def components(
        self, q: Float[Tensor, "B H N D"], k: Float[Tensor, "B G M D"], v: Float[Tensor, "B G M E"]
    ) -> Mapping[str, Callable[[], object]]:
        """Hashing, sorting into buckets, and the attention over the windows, which is the kernel alone."""
        codes = self._codes(q, k, None)
        windows = self._sorted(*codes, None)
        return {
            "hashing": lambda: self._codes(q, k, None),
            "bucket assignment": lambda: self._sorted(*codes, None),
            "bucket attention": lambda: attend(q, k, v, windows, self.scale, once=self.once)[0],
        }

    @property
    def rings(self) -> list[tuple[int, int]]:
        """Number of codes and window size of the local table, whose code is always zero, and of each hash table."""
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
        """Upper bounds on scores and FLOPs for any distribution of codes, and the size of the decoding state.

        Each query attends to at most tables·window + local keys, twice that without causality, and never more than M.
        With duplicates the limit of M holds per table. If all keys have one code, the number of comparisons is exact,
        and the windows lie within the widest one. The kernel computes whole tiles: a block of sorted queries spans its
        own windows, at most N·window + block·M pairs per table. Hashing is not counted. The state is that of `stream`:
        keys, values and a four-byte position in each slot, and a counter for each code.
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
        from attentions.buckets.stream import BucketStream  # imported here because the stream imports this class

        return BucketStream(self, batch)

    def _codes(
        self, q: Float[Tensor, "B H N D"], k: Float[Tensor, "B G M D"], first: Int[Tensor, " B"] | None
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Codes of queries (X, Q) and keys (X, M) for each entry of `rings`."""
        B, N, M = q.shape[0], q.shape[2], k.shape[2]
        skipped = torch.zeros(B, dtype=torch.long, device=q.device) if first is None else first.to(q.device)
        at = torch.arange(M, device=q.device) - skipped[:, None]
        of_q = [by_key_head(x, self.kv_heads).flatten(0, 1) for x in self.codes(q, at[:, M - N :], query=True)]
        of_k = [x.flatten(0, 1) for x in self.codes(k, at, query=False)]
        return [torch.zeros_like(of_q[0]), *of_q], [torch.zeros_like(of_k[0]), *of_k]
