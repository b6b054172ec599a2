"""Softmax attention in which both queries and keys are replaced by their nearest codewords.

S query codes and S key codes have S² scores, whatever the length. Without a causal mask a query's code determines its
output: S outputs per head are computed and then looked up, so outputs have at most S distinct rows. With a causal mask,
the sums of values per key code change with the position, and each query still weights S of them. After Lingle 2023,
https://arxiv.org/abs/2309.16354, which quantises only keys; the layer is `transformer_vq.nn.attn_vq.VQAttentionQK`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Unpack

import torch
from jaxtyping import Float
from torch import Tensor

from attentions.codebooks.quantised import FoundCodes, QuantisedAttention
from attentions.native import vq as native
from transformer_vq.codes import State, codewords, straight_through

if TYPE_CHECKING:
    from attentions.common.problem import Problem
    from attentions.common.settings import Shape


class VQQK(QuantisedAttention):
    """Quantised keys and queries, with one codebook per query head and per key/value head."""

    def __init__(
        self, heads: int, head_dim: int, *, codes: int = 128, block: int = 128, **shape: Unpack[Shape]
    ) -> None:
        super().__init__(heads, head_dim, codes=codes, block=block, **shape)
        self.register_buffer("query_book", self.drawn(heads, 1))

    query_book: Tensor

    def find_codes(self, q: Float[Tensor, "B H N D"], k: Float[Tensor, "B G M D"]) -> FoundCodes:
        return FoundCodes(self.codes_of(k, self.key_book), self.codes_of(q, self.query_book))

    def queries(self, q: Float[Tensor, "B H N D"], found: FoundCodes) -> Float[Tensor, "B H N D"]:
        assert found.queries is not None, "queries are quantised"
        return straight_through(q, codewords(self.query_book.to(q.dtype), found.queries))

    def fused(
        self,
        q: Float[Tensor, "B H N D"],
        found: FoundCodes,
        v: Float[Tensor, "B G N E"] | None,
        state: State,
    ) -> Float[Tensor, "B H N E"]:
        query_codes = found.queries
        assert query_codes is not None, "queries are quantised"
        query_book, key_book = self.query_book.to(q.dtype), self.key_book.to(q.dtype)
        table = query_book @ key_book.repeat_interleave(self.heads // self.kv_heads, dim=0).mT * self.scale
        if v is not None:
            return native.attend_by_code(query_codes, table, found.keys, v, state.counts, state.sums)
        every = torch.arange(self.codes).expand(len(q), self.heads, -1)
        outputs = native.attend_by_code(every, table, None, None, state.counts, state.sums)
        return native.look_up(outputs, query_codes)

    def prepare(self, q: Float[Tensor, "B H N D"], k: Float[Tensor, "B G M D"], v: Float[Tensor, "B G M E"]) -> None:
        super().prepare(q, k, v)
        self.query_book.copy_(self.learnt(q, 1))

    def score_cost(self, problem: Problem) -> tuple[int, int]:
        """2·D·S for a query's code, 2·D for a score of two codes, 2·E·S to weight values per query (causal) or code."""
        p, S, heads = problem, self.codes, problem.batch * problem.heads
        weighted = p.queries if p.causal else S
        flops = 2 * heads * S * (p.head_dim * (p.queries + S) + p.value_dim * weighted)
        return flops, heads * S * S
