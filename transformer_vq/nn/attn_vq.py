"""Attention layers with quantised keys, and with quantised queries and keys.

    layer = VQAttentionQK(TransformerConfig(d_model=1024, n_code=128, block_len=32))
    y = layer(x)                                    # (batch, length, 1024); eval: layer.eval()(x)
    result = layer.train().run(x)                   # result.out, result.loss, result.figures, result.state

Lingle 2023, https://arxiv.org/abs/2309.16354. Both take time linear in the length. Without a causal mask, and if no
gradient is needed, the second computes one output per query code and looks it up.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from jaxtyping import Float
from torch import Tensor

from transformer_vq.nn.base_attn import BaseAttention, LayerState, Result

if TYPE_CHECKING:
    from transformer_vq.nn.config_spec import TransformerConfig

__all__ = ["LayerState", "Result", "VQAttention", "VQAttentionQK"]


class VQAttention(BaseAttention):
    """Transformer-VQ's attention: quantised keys, unquantised queries."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__(config, quantise_queries=False)

    def mount(self, keys: Float[Tensor, ...]) -> None:
        """Use an existing codebook (n_head, n_code_k, d_k); raises ValueError for another shape."""
        self.key_quantiser.mount(keys)


class VQAttentionQK(BaseAttention):
    """Quantised queries and keys, each with its own codebook."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__(config, quantise_queries=True)

    def mount(self, queries: Float[Tensor, ...], keys: Float[Tensor, ...]) -> None:
        """Use existing codebooks (n_head, n_code_q, d_k) and (n_head, n_code_k, d_k).

        Raises ValueError for other shapes.
        """
        assert self.query_quantiser is not None, "queries are quantised"
        self.query_quantiser.mount(queries)
        self.key_quantiser.mount(keys)
