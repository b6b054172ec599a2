"""Transformer-VQ: softmax attention with each key replaced by its nearest codeword.

Lingle 2023, "Transformer-VQ: linear-time transformers via vector quantization", https://arxiv.org/abs/2309.16354. Equal
to dense softmax attention over the quantised keys. This adapter leaves out the gate and the relative positions of the
paper's layer. The layer that trains codebooks is `transformer_vq.nn.attn_vq.VQAttention`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from jaxtyping import Float
from torch import Tensor

from attentions.codebooks.quantised import FoundCodes, QuantisedAttention
from attentions.native import vq as native

if TYPE_CHECKING:
    from attentions.common.problem import Problem
    from transformer_vq.codes import State


class VQ(QuantisedAttention):
    """Quantised keys, unquantised queries."""

    def queries(self, q: Float[Tensor, "B H N D"], found: FoundCodes) -> Float[Tensor, "B H N D"]:
        return q

    def fused(
        self,
        q: Float[Tensor, "B H N D"],
        found: FoundCodes,
        v: Float[Tensor, "B G N E"] | None,
        state: State,
    ) -> Float[Tensor, "B H N E"]:
        codes = None if v is None else found.keys
        return native.attend(q, self.key_book, codes, v, state.counts, state.sums, self.scale)

    def score_cost(self, problem: Problem) -> tuple[int, int]:
        """S scores per query at 2·D each, and 2·E per score to weight the sum of a code's values."""
        scores = problem.batch * problem.heads * problem.queries * self.codes
        return 2 * scores * (problem.head_dim + problem.value_dim), scores
