"""Transformer-VQ: softmax attention to keys that are the codewords nearest to them.

Lingle 2023, "Transformer-VQ: linear-time transformers via vector quantization", https://arxiv.org/abs/2309.16354.
Equal to dense softmax with each key replaced by its codeword. Left out of this adapter: the gate and the relative
positions of the paper's layer; the layer with training of codebooks is `transformer_vq.nn.attn_vq.VQAttention`.
"""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor

from attentions.base import Problem
from attentions.native import vq as native
from attentions.quantised import Quantised
from transformer_vq.codes import State


class VQ(Quantised):
    """Keys quantised; queries as they are."""

    def queries(self, q: Float[Tensor, "B H N D"]) -> Float[Tensor, "B H N D"]:
        return q

    def fused(
        self,
        q: Float[Tensor, "B H N D"],
        codes: Int[Tensor, "B G N"] | None,
        v: Float[Tensor, "B G N E"] | None,
        state: State,
    ) -> Float[Tensor, "B H N E"]:
        return native.attend(q, self.key_book, codes, v, state.counts, state.sums, self.scale)

    def score_cost(self, problem: Problem) -> tuple[int, int]:
        """S scores a query, at 2·D each, and 2·E to weight the sum of a code's values."""
        scores = problem.batch * problem.heads * problem.queries * self.codes
        return 2 * scores * (problem.head_dim + problem.value_dim), scores
