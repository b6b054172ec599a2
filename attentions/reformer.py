"""Reformer's LSH attention, the standard baseline for hashed attention.

Kitaev, Kaiser and Levskaya 2020, "Reformer: the efficient transformer", https://arxiv.org/abs/2001.04451. Queries and
keys are shared: k_j = q_j / |q_j|, and the given k is ignored. Each round hashes by argmax[xR; -xR], sorts by (bucket,
position), cuts the sorted sequence into chunks, and lets each chunk attend to itself and the previous one. Rounds are
merged by their log-sum-exp, so a key found twice counts twice. A position attends to itself only if it has no other
key.

The logit scale is this project's, head_dim**-0.5 on top of unit keys, as in lucidrains' reformer-pytorch; Trax leaves
it out. As in Trax, chunks may cross buckets, and more than 128 buckets are hashed in two factors. The wrap-around from
the first chunk to the last is not implemented.

Later tokens change how earlier ones are sorted and chunked: causality is "selection". Half precision is computed in
float32, because the squared norm overflows float16 long before the norm does.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import ClassVar, Unpack

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from attentions.buckets.support import SupportAttention
from attentions.buckets.window_attention import attend, window_pairs
from attentions.common.problem import Cost, Problem
from attentions.common.reference import causal_pairs, query_positions, softmax_attention
from attentions.common.settings import Shape, require
from attentions.common.windows import Windows
from transformer_vq.precision import Selector, exact_products

FACTORED_ABOVE = 128  # buckets
PIECE = 2048  # positions hashed at once, so that their rotations stay in cache


class Reformer(Selector, SupportAttention):
    """`hashes` rounds with chunks of `chunk` positions and `buckets` buckets; None is the paper's `max_len / chunk`."""

    paper = "https://arxiv.org/abs/2001.04451"
    approximates = "shared-qk softmax"
    claimed_time = "n log n"
    causality = "selection"
    once = False
    added: ClassVar[tuple[str, ...]] = ("rotations",)
    rotations: Tensor

    def __init__(
        self,
        heads: int,
        head_dim: int,
        *,
        hashes: int = 4,
        chunk: int = 64,
        buckets: int | None = None,
        **shape: Unpack[Shape],
    ) -> None:
        super().__init__(heads, head_dim, **shape)
        require(hashes >= 1, "hashes", hashes, "an integer of at least 1")
        require(chunk >= 1, "chunk", chunk, "an integer of at least 1")
        require(buckets is None or buckets >= 2, "buckets", buckets, "None or an integer of at least 2")
        self.hashes, self.chunk = hashes, chunk
        wanted = buckets or (self.max_len or 4096) / chunk
        # An argmax over [xR; -xR] has an even number of values. Large bucket counts are split into two factors.
        sizes = [wanted] if wanted <= FACTORED_ABOVE else [2 ** round(math.log2(wanted) / 2)]
        sizes += [wanted / sizes[0]] if wanted > FACTORED_ABOVE else []
        self.factors = [max(2, 2 * math.ceil(size / 2)) for size in sizes]
        generator = torch.Generator().manual_seed(self.seed)
        shape_of = (heads, head_dim, hashes * sum(self.factors) // 2)
        self.register_buffer("rotations", torch.randn(shape_of, generator=generator, dtype=torch.float32))

    def forward(
        self,
        q: Float[Tensor, "B H N D"],
        k: Float[Tensor, "B G M D"],
        v: Float[Tensor, "B G M E"],
        *,
        first: Int[Tensor, " B"] | None = None,
    ) -> Float[Tensor, "B H N E"]:
        dtype, wide = q.dtype, torch.promote_types(q.dtype, torch.float32)
        q, v = q.to(wide), self._every_head(v).to(wide)
        out, lse, self.kernel = attend(q, unit(q), v, self.windows(q, first=first), self.scale, once=False)
        alone = lse == -torch.inf
        if first is not None:
            alone &= (torch.arange(q.shape[2], device=q.device) >= first.to(q.device)[:, None])[:, None]
        return torch.where(alone[..., None], v, out).to(dtype)

    def windows(self, q: Float[Tensor, "B H N D"], *, first: Int[Tensor, " B"] | None = None) -> list[Windows]:
        """One table per round; every query head is a row of X, because it has its own keys."""
        B, H, N, _ = q.shape
        position = torch.arange(N, device=q.device).expand(B * H, -1)
        real = torch.zeros(B, dtype=torch.long, device=q.device) if first is None else first.to(q.device)
        real = real.repeat_interleave(H)[:, None]
        tables = []
        for codes in self.codes(q):
            code = codes.flatten(0, 1).masked_fill(position < real, -1)
            order = torch.sort(code, dim=1, stable=True).indices
            chunk = (position - real).div(self.chunk, rounding_mode="floor")  # by sorted rank
            start = real + (chunk - 1).clamp(min=0) * self.chunk
            end = torch.minimum(real + (chunk + 1) * self.chunk, torch.tensor(N, device=q.device))
            start, end = (x.masked_fill(position < real, 0) for x in (start, end))
            start, end = (torch.empty_like(order).scatter_(1, order, x) for x in (start, end))
            order, start, end, at = (x.int() for x in (order, start, end, position))
            tables.append(Windows(order, order, start, end, before=at if self.causal else None, skip=at))
        return tables

    def codes(self, q: Float[Tensor, "B H N D"]) -> Int[Tensor, "hashes B H N"]:
        """argmax[xR; -xR] of each round, one factor at a time."""
        x = q.detach() if q.dtype == torch.float64 else q.detach().float()
        rotations = self.rotations.to(x.dtype)
        with exact_products(x.device):
            return torch.cat([self._codes(piece @ rotations) for piece in x.split(PIECE, dim=2)], dim=-1)

    def _codes(self, turned: Float[Tensor, "B H T R"]) -> Int[Tensor, "hashes B H T"]:
        turned = turned.unflatten(-1, (self.hashes, -1))
        code = torch.zeros(turned.shape[:-1], dtype=torch.int64, device=turned.device)
        for size, part in zip(self.factors, turned.split([f // 2 for f in self.factors], dim=-1), strict=True):
            farthest = part.abs().argmax(-1, keepdim=True)
            opposite = part.gather(-1, farthest) < 0
            code = code * size + (farthest + opposite * (size // 2)).squeeze(-1)
        return code.movedim(-1, 0)

    def multiplicity(
        self,
        q: Float[Tensor, "B H N D"],
        k: Float[Tensor, "B G M D"],
        *,
        first: Int[Tensor, " B"] | None = None,
        rows: Int[Tensor, " R"] | None = None,
    ) -> Int[Tensor, "B H R M"]:
        pairs = causal_pairs(q.shape[2], k.shape[2], causal=self.causal, first=first, rows=rows, device=q.device)
        chosen, key = query_positions(q.shape[2], k.shape[2], rows, q.device), torch.arange(k.shape[2], device=q.device)
        real = torch.zeros(len(q), dtype=torch.long, device=q.device) if first is None else first.to(q.device)
        real, own = real[:, None, None], chosen[:, None] == key
        total = torch.zeros(*q.shape[:2], len(chosen), k.shape[2], dtype=torch.int32, device=q.device)
        two = torch.arange(-self.chunk, self.chunk, device=q.device)  # the previous chunk and the query's own
        for code in self.codes(q):
            order = torch.argsort(code.masked_fill(key < real, -1), dim=-1, stable=True)
            rank = torch.argsort(order, dim=-1)[:, :, chosen] - real
            at = ((rank - rank % self.chunk)[..., None] + two).flatten(2)
            there = (at >= 0) & (at + real < k.shape[2])
            keys = order.gather(-1, (at + real).clamp(0, k.shape[2] - 1))
            total.scatter_add_(-1, *(x.unflatten(2, (len(chosen), -1)) for x in (keys, there.int())))
        total *= pairs & ~own
        alone = (total == 0).all(-1, keepdim=True)
        return total + (alone & own & pairs).int()

    def naive(
        self,
        q: Float[Tensor, "B H N D"],
        k: Float[Tensor, "B G M D"],
        v: Float[Tensor, "B G M E"],
        *,
        first: Int[Tensor, " B"] | None = None,
        rows: Int[Tensor, " R"] | None = None,
    ) -> Float[Tensor, "B H R E"]:
        count = self.multiplicity(q, k, first=first, rows=rows)
        return softmax_attention(
            q, unit(q.double()), self._every_head(v), count > 0, self.scale, rows=rows, weight=count
        )

    def target(
        self,
        q: Float[Tensor, "B H N D"],
        k: Float[Tensor, "B G M D"],
        v: Float[Tensor, "B G M E"],
        *,
        first: Int[Tensor, " B"] | None = None,
        rows: Int[Tensor, " R"] | None = None,
    ) -> Float[Tensor, "B H R E"]:
        """Shared-QK attention over every key: softmax of q·q̂, with a position's own key only if it has no other."""
        pairs = self.target_pairs(q.shape[2], k.shape[2], first=first, rows=rows, device=q.device)
        return softmax_attention(q, unit(q.double()), self._every_head(v), pairs, self.scale, rows=rows)

    def target_keys(
        self, q: Float[Tensor, "B H N D"], k: Float[Tensor, "B G M D"]
    ) -> Float[Tensor, "B heads_of_keys M D"]:
        return unit(q.double())

    def target_pairs(
        self,
        queries: int,
        keys: int,
        *,
        first: Int[Tensor, " B"] | None,
        rows: Int[Tensor, " R"] | None,
        device: torch.device,
    ) -> Bool[Tensor, "B 1 R M"]:
        pairs = causal_pairs(queries, keys, causal=self.causal, first=first, rows=rows, device=device)
        own = query_positions(queries, keys, rows, device)[:, None] == torch.arange(keys, device=device)
        others = pairs & ~own
        return others | (pairs & own & ~others.any(-1, keepdim=True))

    def comparisons(self, q: Float[Tensor, "B H N D"], k: Float[Tensor, "B G M D"]) -> Int[Tensor, "B H"]:
        pairs = window_pairs(self.windows(q), once=False)
        return pairs.clamp(min=1).sum(-1).view(q.shape[:2])

    def why_not(self, problem: Problem) -> str:
        if problem.queries != problem.keys:
            return "Reformer shares queries and keys, so there must be equally many of both"
        return super().why_not(problem)

    def cost(self, problem: Problem) -> Cost:
        """Each of `hashes` rounds scores two chunks for every query; hashing adds one product with the rotations.

        The score of a position with itself enters the output only if it has no other key. Of two positions in the same
        chunk, the later one sees the other; of two positions in neighbouring chunks, at most one sees the other.
        """
        p = problem
        queries = p.batch * p.heads * p.queries
        scores = queries * self.hashes * min(p.keys, 2 * self.chunk)
        sizes = [self.chunk] * (p.keys // self.chunk) + [p.keys % self.chunk] * (p.keys % self.chunk > 0)
        own = sum(size * (size - 1) // (2 if p.causal else 1) for size in sizes)
        before = sum(one * two for one, two in pairwise(sizes))
        alone = len(sizes) if p.causal else int(sizes[0] == 1)  # the first of a chunk, if it is first in every round
        hashing = 2 * queries * p.head_dim * self.rotations.shape[-1]
        return Cost(
            flops=2 * scores * (p.head_dim + p.value_dim) + hashing,
            comparisons=p.batch * p.heads * (self.hashes * (own + before) + alone),
            state_bytes=p.batch * p.kv_heads * p.keys * (p.head_dim + p.value_dim) * p.dtype.itemsize,
        )

    def _every_head(self, v: Float[Tensor, "B G M E"]) -> Float[Tensor, "B H M E"]:
        return v if self.heads == self.kv_heads else v.repeat_interleave(self.heads // self.kv_heads, dim=1)


def unit(q: Float[Tensor, "B H N D"]) -> Float[Tensor, "B H N D"]:
    """Return keys made from queries: scaled to unit length; a zero vector stays zero."""
    return F.normalize(q, dim=-1, eps=torch.finfo(q.dtype).tiny)
