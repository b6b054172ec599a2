"""LSH-forest attention: each query uses the deepest bucket in a tree of codes that still holds enough keys.

Bawa, Condie and Ganesan 2005, "LSH forest: self-tuning indexes for similarity search",
https://doi.org/10.1145/1060745.1060840. A tree is a long SimHash code read as a path of bits. In each tree a query
finds the longest prefix that at least `min_candidates` earlier keys share with it, and attends to the most recent
`window` of those keys. The empty prefix always matches. The number of buckets is therefore not a setting: depth and
number of candidates follow each query's neighbourhood and the length so far. A query that is alone in a deep bucket
moves up instead of attending to nothing; a bucket that is crowded down to the last bit is cut to the window.

Not implemented from the paper: descending all trees together for the exact m nearest. Here each tree contributes its
own share.
"""

from __future__ import annotations

from typing import Unpack

import torch
from jaxtyping import Float, Int
from torch import Tensor

from attentions.buckets.hashing import SimHash
from attentions.buckets.support import SupportAttention, window_total
from attentions.buckets.window_attention import attend, by_key_head, sorted_windows, window_pairs
from attentions.buckets.window_tiles import BLOCK
from attentions.common.problem import Cost, Problem
from attentions.common.reference import nearest, query_positions
from attentions.common.settings import Shape, require
from attentions.common.windows import Windows, forest_windows
from attentions.native import bucket_window


class LSHForest(SupportAttention):
    """`trees` trees of `bits` levels; `min_candidates` sets the depth; their union holds at most `max_candidates` keys.

    The `local` most recent keys are included and count towards `max_candidates`; the rest is divided evenly among the
    trees and is the window of a tree. `min_candidates=None` is half a window: a bucket has about twice the keys of each
    child, so few buckets need to be cut. Raises ValueError if `min_candidates` is larger than a window, because then
    every window would be full.
    """

    paper = "https://doi.org/10.1145/1060745.1060840"
    claimed_time = "n log n"

    def __init__(
        self,
        heads: int,
        head_dim: int,
        *,
        trees: int = 4,
        bits: int = 16,
        min_candidates: int | None = None,
        max_candidates: int = 256,
        local: int = 32,
        **shape: Unpack[Shape],
    ) -> None:
        super().__init__(heads, head_dim, **shape)
        for name, value in (("trees", trees), ("local", local)):
            require(value >= 1, name, value, "an integer of at least 1")
        require(1 <= bits <= 20, "bits", bits, "from 1 to 20")
        least = trees + local
        require(max_candidates >= least, "max_candidates", max_candidates, f"at least trees + local = {least}")
        self.trees, self.bits, self.local, self.max_candidates = trees, bits, local, max_candidates
        self.window = (max_candidates - local) // trees
        self.min_candidates = max(1, self.window // 2) if min_candidates is None else min_candidates
        allowed = f"from 1 to {self.window}, a tree's window (max_candidates - local) // trees"
        require(1 <= self.min_candidates <= self.window, "min_candidates", min_candidates, allowed)
        self.hash = SimHash(self.kv_heads, head_dim, bits=bits, tables=trees, seed=self.seed)

    def forward(
        self,
        q: Float[Tensor, "B H N D"],
        k: Float[Tensor, "B G M D"],
        v: Float[Tensor, "B G M E"],
        *,
        first: Int[Tensor, " B"] | None = None,
    ) -> Float[Tensor, "B H N E"]:
        out, _, self.kernel = attend(q, k, v, self.windows(q, k, first=first), self.scale)
        return out

    def windows(
        self,
        q: Float[Tensor, "B H N D"],
        k: Float[Tensor, "B G M D"],
        *,
        first: Int[Tensor, " B"] | None = None,
    ) -> list[Windows]:
        """Return the local window and one window per tree, whose keys are sorted once per depth."""
        real = None if first is None else first.to(q.device).repeat_interleave(self.kv_heads)
        of_q = [by_key_head(x, self.kv_heads).flatten(0, 1) for x in self.hash(q)]
        of_k = [x.flatten(0, 1) for x in self.hash(k)]
        heads, shared = self.heads // self.kv_heads, {"causal": self.causal, "real": real}
        zero_q, zero_k = torch.zeros_like(of_q[0]), torch.zeros_like(of_k[0])
        tables = [sorted_windows(zero_q, zero_k, heads, 1, self.local, **shared)]
        forest = (self.bits, self.min_candidates)
        build = bucket_window.windows if bucket_window.available(q.device) else forest_windows
        for tree_q, tree_k in zip(of_q, of_k, strict=True):
            tables.append(build(tree_q, tree_k, heads, 2**self.bits, self.window, forest=forest, **shared))
        return tables

    def multiplicity(
        self,
        q: Float[Tensor, "B H N D"],
        k: Float[Tensor, "B G M D"],
        *,
        first: Int[Tensor, " B"] | None = None,
        rows: Int[Tensor, " R"] | None = None,
    ) -> Int[Tensor, "B H R M"]:
        at = query_positions(q.shape[2], k.shape[2], rows, q.device)[:, None]
        key = torch.arange(k.shape[2], device=q.device)
        real = torch.zeros(len(q), dtype=torch.long, device=q.device) if first is None else first.to(q.device)
        allowed = ((key >= real[:, None])[:, None] & (at >= real[:, None, None]))[:, None]
        past, future = allowed & (key <= at), None if self.causal else allowed & (key > at)
        candidates = past if self.causal else allowed
        found = nearest(past, future, self.local).expand(-1, self.heads, -1, -1)
        for of_q, of_k in zip(self.hash(q), self.hash(k), strict=True):
            of_q = of_q if rows is None else of_q[:, :, rows.to(q.device)]
            of_k = of_k.repeat_interleave(self.heads // self.kv_heads, dim=1)
            differ = (of_q.int()[..., None] ^ of_k.int()[:, :, None]).masked_fill_(~candidates, 2**self.bits)
            same = differ < 2 ** self._free_bits(differ)
            found = found | nearest(same & past, None if future is None else same & future, self.window)
        return found.int()

    def _free_bits(self, differ: Int[Tensor, "B H R M"]) -> Int[Tensor, "B H R 1"]:
        """Number of bits below the deepest prefix that enough candidates share with the query; `bits` + 1 at the root.

        Two codes share their first bits - f bits exactly if they differ by less than 2^f, so f is the bit length of the
        difference to the `min_candidates`-th nearest code. At the root every candidate counts, however few there are.
        """
        enough = min(self.min_candidates, differ.shape[-1])
        farthest = differ.topk(enough, largest=False).values[..., -1:]
        free = torch.frexp(farthest.double()).exponent
        return free if self.min_candidates == enough else torch.full_like(free, self.bits + 1)

    def comparisons(self, q: Float[Tensor, "B H N D"], k: Float[Tensor, "B G M D"]) -> Int[Tensor, "B H"]:
        pairs = window_pairs(self.windows(q, k))
        return pairs.unflatten(1, (-1, q.shape[2])).sum(-1).view(q.shape[0], self.heads)

    def cost(self, problem: Problem) -> Cost:
        """Each query attends to at most trees·window + local keys, twice that without causality, and never more than M.

        Each tile adds one block. Hashing is not counted. The method has no bounded decoding state, so the state is the
        whole cache.
        """
        p, sides = problem, 1 if problem.causal else 2
        width = p.head_dim + p.value_dim
        tiles = self.trees * min(p.keys, sides * self.window + BLOCK) + min(p.keys, sides * self.local + BLOCK)
        heads, most = p.batch * p.heads, self.trees * self.window + self.local
        return Cost(
            flops=2 * heads * p.queries * tiles * width,
            comparisons=heads * window_total(p.queries, p.keys, most, causal=p.causal),
            state_bytes=p.batch * p.kv_heads * p.keys * width * p.dtype.itemsize,
        )
