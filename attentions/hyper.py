"""HyperAttention: sorted hash codes give each query a block of keys; uniform sampling estimates the rest.

Han et al. 2023, "HyperAttention: long-context attention in near-linear time", https://arxiv.org/abs/2310.05869; the
implementation is in `hyper_attn`.

Definition, for each query: one softmax with weight 1 on the keys of its own block and weight n/m on each of m sampled
keys outside it, counted once per draw. Causal attention halves the sequence recursively, applies this to the earlier
half of each part, and is exact within the parts that remain at the end.

Later tokens change how the sequence is halved and how its earlier half is sorted: causality is "selection".
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Unpack

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from attentions.base import Attention
from attentions.common.problem import Cost, Problem
from attentions.common.reference import query_positions, softmax_attention
from hyper_attn.hyper_attn import HyperAttention

if TYPE_CHECKING:
    from attentions.common.settings import Shape
    from hyper_attn.utils import Leaves


class Hyper(Attention):
    """HyperAttention with `lsh_num_projs` bits per code, blocks of `block_size` and `sample_size` draws per head.

    With fewer than `min_seq_len` keys attention is exact.
    """

    paper = "https://arxiv.org/abs/2310.05869"
    accepts_padding = False
    claimed_time = "n log n"
    causality = "selection"

    def __init__(
        self,
        heads: int,
        head_dim: int,
        *,
        block_size: int = 256,
        sample_size: int = 256,
        min_seq_len: int = 4096,
        lsh_num_projs: int = 7,
        **shape: Unpack[Shape],
    ) -> None:
        super().__init__(heads, head_dim, **shape)
        self.hyper = HyperAttention(head_dim, lsh_num_projs, block_size, sample_size, min_seq_len, seed=self.seed)

    def forward(
        self,
        q: Float[Tensor, "B H N D"],
        k: Float[Tensor, "B G M D"],
        v: Float[Tensor, "B G M E"],
        *,
        first: Int[Tensor, " B"] | None = None,
    ) -> Float[Tensor, "B H N E"]:
        del first  # `accepts_padding` is off
        out = self.hyper(q, k, v, scale=self.scale, causal=self.causal)
        return out if isinstance(out, Tensor) else out[0]

    def naive(
        self,
        q: Float[Tensor, "B H N D"],
        k: Float[Tensor, "B G M D"],
        v: Float[Tensor, "B G M E"],
        *,
        first: Int[Tensor, " B"] | None = None,
        rows: Int[Tensor, " R"] | None = None,
    ) -> Float[Tensor, "B H R E"]:
        weight = self.weights(q, k, first=first, rows=rows)
        return softmax_attention(q, k, v, weight > 0, self.scale, rows=rows, weight=weight)

    def weights(
        self,
        q: Float[Tensor, "B H N D"],
        k: Float[Tensor, "B G M D"],
        *,
        first: Int[Tensor, " B"] | None = None,
        rows: Int[Tensor, " R"] | None = None,
    ) -> Float[Tensor, "B H R M"]:
        """Weight of each key's exponential for each query row, zero if it is not attended to; one square at a time."""
        N, M = q.shape[2], k.shape[2]
        if first is not None:
            padded = torch.zeros(*q.shape[:3], M, dtype=torch.float64, device=q.device)
            for b, real in enumerate(first.tolist()):
                one, start = slice(b, b + 1), max(real - (M - N), 0)
                if real < M:
                    padded[one, :, start:, real:] = self.weights(q[one, :, start:], k[one, :, real:])
            return padded if rows is None else padded[:, :, rows.to(q.device)]
        levels, leaves = self.hyper.divide(N, M, self.causal)
        at = query_positions(N, M, rows, q.device)
        total = leaf_pairs(at, M, leaves).double().repeat(*q.shape[:2], 1, 1)
        row, every = at - (M - N), k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
        q_codes, k_codes = self.hyper.codes(q, levels), self.hyper.codes(every, levels)
        for level, draws in zip(levels, self.hyper.draws(levels, q.shape[1]), strict=True):
            for (key, query, count), drawn in zip(level.squares, draws.to(q.device).unbind(1), strict=True):
                inside = ((row >= query) & (row < query + count)).nonzero()[:, 0]
                codes = q_codes[:, :, query : query + count], k_codes[:, :, key : key + level.keys]
                total[:, :, inside, key : key + level.keys] += square_weights(
                    level.blocks, *codes, drawn, row[inside] - query
                )
        return total

    def comparisons(self, q: Float[Tensor, "B H N D"], k: Float[Tensor, "B G M D"]) -> Int[Tensor, "B H"]:
        """Scores within leaves and blocks, and those of draws outside the query's own block, including repeats."""
        selection, leaves = self.hyper.select(q, k, self.causal)
        at = query_positions(q.shape[2], k.shape[2], None, q.device)
        total = torch.zeros(q.shape[:2], dtype=torch.int64, device=q.device) + leaf_sizes(at, leaves).sum()
        for table in selection.tables(torch.float32):
            queries = (table.query < q.shape[:3].numel()).sum(1)
            scores = queries * (table.bias > -torch.inf).sum((1, 2, 3))
            total += scores.view(*q.shape[:2], -1).sum(-1)
        return total

    def cost(self, problem: Problem) -> Cost:
        """Each query scores its block and the sample at each level, and half a leaf; hashing is one product.

        A level's blocks have ceil(keys / blocks) keys. All draws are scored, including those in the query's own block.
        """
        p = problem
        levels, leaves = self.hyper.divide(p.queries, p.keys, p.causal)
        at = query_positions(p.queries, p.keys, None, torch.device("cpu"))
        scores = int(leaf_sizes(at, leaves).sum())
        for level in levels:
            width = -(-level.keys // level.blocks) + (self.hyper.sample_size if level.blocks > 1 else 0)
            scores += width * sum(count for _, _, count in level.squares)
        scores *= p.batch * p.heads
        hashed = p.batch * (p.heads * p.queries + p.kv_heads * p.keys) if levels else 0
        return Cost(
            flops=2 * scores * (p.head_dim + p.value_dim)
            + 2 * hashed * p.head_dim * self.hyper.lsh.projections.shape[0],
            comparisons=scores,
            state_bytes=p.batch * p.kv_heads * p.keys * (p.head_dim + p.value_dim) * p.dtype.itemsize,
        )


def leaf_pairs(at: Int[Tensor, " R"], keys: int, leaves: Leaves | None) -> Bool[Tensor, "R M"]:
    """Whether each key is in the same leaf as the query at each position, and not after it."""
    key = torch.arange(keys, device=at.device)
    back = at[:, None] - key
    return (back >= 0) & (back < leaf_sizes(at, leaves)[:, None])


def leaf_sizes(at: Int[Tensor, " R"], leaves: Leaves | None) -> Int[Tensor, " R"]:
    """Number of keys of its leaf that the query at each position attends to."""
    return torch.zeros_like(at) if leaves is None else (at - leaves.start) % leaves.size + 1


def square_weights(
    blocks: int,
    q_codes: Int[Tensor, "B H N"],
    k_codes: Int[Tensor, "B H K"],
    drawn: Int[Tensor, "H m"],
    rows: Int[Tensor, " R"],
) -> Float[Tensor, "B H R K"]:
    """Weights in one square: 1 in the query's own block, K/m for each draw outside it."""
    keys, order = k_codes.shape[2], torch.argsort(k_codes, dim=-1, stable=True)
    # The inverse of the order is each key's rank; equal ranges of ranks are blocks.
    q_rank = torch.argsort(torch.argsort(q_codes, dim=-1, stable=True), dim=-1)[:, :, rows]
    k_rank = torch.argsort(order, dim=-1)
    q_block, k_block = q_rank * blocks // q_codes.shape[2], k_rank * blocks // keys
    own = (q_block.unsqueeze(-1) == k_block.unsqueeze(-2)).double()
    sampled = order.gather(-1, drawn.expand(len(order), -1, -1))
    times = torch.zeros(k_codes.shape, dtype=torch.float64, device=order.device)
    times.scatter_add_(-1, sampled, torch.ones(sampled.shape, dtype=torch.float64, device=order.device))
    return own + (1 - own) * times.unsqueeze(-2) * (keys / max(drawn.shape[-1], 1))
