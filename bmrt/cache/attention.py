"""A bounded cache as an `Attention` backend: softmax attention over the tokens that a strategy keeps.

`forward` processes the sequence block by block, like a prompt in a model; a stream processes it token by token.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Unpack

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from attentions.base import Attention
from attentions.common.problem import Cost, Problem
from attentions.common.reference import softmax_attention
from attentions.common.stream import Stream
from bmrt.cache.budget import Budget
from bmrt.cache.layer import BoundedLayer
from bmrt.cache.plan import CompressionPlan
from bmrt.strategies import build_strategy

if TYPE_CHECKING:
    from attentions.common.settings import Shape


class BoundedAttention(Attention):
    """Attention over keys and values of at most `budget` tokens, with a named `strategy` and blocks of `block` tokens.

    Strictly causal for a given block size: later tokens never change earlier rows. Needs a query for every key.
    """

    paper = "https://arxiv.org/abs/2602.02199"
    claimed_time = "n"

    def __init__(
        self,
        heads: int,
        head_dim: int,
        *,
        budget: int = 1024,
        protection_divisor: int = 4,
        strategy: str = "exact",
        block: int = 512,
        **shape: Unpack[Shape],
    ) -> None:
        super().__init__(heads, head_dim, **shape)
        self.plan = CompressionPlan(Budget(budget, protection_divisor))
        self.strategy, self.block_tokens = build_strategy(strategy), block

    def forward(
        self,
        q: Float[Tensor, "B H N D"],
        k: Float[Tensor, "B G M D"],
        v: Float[Tensor, "B G M E"],
        *,
        first: Int[Tensor, " B"] | None = None,
    ) -> Float[Tensor, "B H N E"]:
        if first is not None or q.shape[2] != k.shape[2]:
            raise ValueError("a bounded cache needs rows without padding and one query per key")
        stream = self.stream(len(q))
        blocks = zip(*(x.split(self.block_tokens, dim=2) for x in (q, k, v)), strict=True)
        return torch.cat([stream.extend(*block) for block in blocks], dim=2)

    def naive(
        self,
        q: Float[Tensor, "B H N D"],
        k: Float[Tensor, "B G M D"],
        v: Float[Tensor, "B G M E"],
        *,
        first: Int[Tensor, " B"] | None = None,
        rows: Int[Tensor, " R"] | None = None,
    ) -> Float[Tensor, "B H R E"]:
        """Compute one float64 softmax over all keys, masking those that were dropped before a row's block."""
        rows = torch.arange(q.shape[2], device=q.device) if rows is None else rows
        visible = self._visible(q, k, v, rows).repeat_interleave(self.heads // self.kv_heads, dim=1)
        return softmax_attention(q, k, v, visible, self.scale, rows=rows)

    def why_not(self, problem: Problem) -> str:
        if problem.queries != problem.keys:
            return (
                "a bounded cache selects by queries, so every key needs its own query; see bmrt.subjects for decoding"
            )
        if not problem.causal:
            return "a cache is causal"
        return super().why_not(problem)

    def cost(self, problem: Problem) -> Cost:
        """Count 2·D + 2·E operations per pair; each query scores at most the budget and its own block.

        The state is keys and values of the budget, without what the strategy stores.
        """
        pairs = problem.batch * problem.heads * problem.queries * (self.plan.budget.total + self.block_tokens)
        values = problem.batch * problem.kv_heads * min(problem.keys, self.plan.budget.total)
        width = problem.head_dim + problem.value_dim
        return Cost(flops=2 * pairs * width, comparisons=pairs, state_bytes=values * width * problem.dtype.itemsize)

    def stream(self, batch: int) -> BoundedStream:
        return BoundedStream(self, batch)

    def _visible(self, q: Tensor, k: Tensor, v: Tensor, rows: Tensor) -> Bool[Tensor, "B G R M"]:
        """Mask of the keys visible to each requested row, from the selections made in the given precision."""
        stream, visible = self.stream(len(q)), torch.zeros(*k.shape[:2], len(rows), k.shape[2], dtype=torch.bool)
        for start in range(0, k.shape[2], self.block_tokens):
            at = slice(start, start + self.block_tokens)
            for place in ((rows >= start) & (rows < at.stop)).nonzero().flatten().tolist():
                row = visible[:, :, place]
                if stream.layer.held:
                    row.scatter_(2, stream.layer.positions.cpu(), value=True)
                row[..., start : int(rows[place]) + 1] = True
            stream.extend(q[:, :, at], k[:, :, at], v[:, :, at])
        return visible.to(q.device)


class BoundedStream(Stream):
    """A bounded cache layer with attention over the tokens it shows."""

    def __init__(self, attention: BoundedAttention, batch: int) -> None:
        super().__init__(attention, batch)
        self.layer = BoundedLayer(0, attention.plan, attention.strategy)
        self._scale = attention.scale

    def advance(
        self, q: Float[Tensor, "B H T D"], k: Float[Tensor, "B G T D"], v: Float[Tensor, "B G T E"]
    ) -> Float[Tensor, "B H T E"]:
        keys, values = self.layer.update(k, v)
        T, N = q.shape[2], keys.shape[2]
        mask = torch.ones(T, N, dtype=torch.bool, device=q.device).tril(N - T) if T > 1 else None
        grouped = q.shape[1] != k.shape[1]
        out = scaled_dot_product_attention(q, keys, values, mask, scale=self._scale, enable_gqa=grouped)
        self.layer.settle(q, self._scale)
        return out

    def select(self, index: Int[Tensor, " B"]) -> None:
        self.layer.batch_select_indices(index)

    @property
    def state_bytes(self) -> int:
        return self.layer.state_bytes
