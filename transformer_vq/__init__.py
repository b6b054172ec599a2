"""Attention by vector quantisation, of keys or of queries and keys.

Lingle 2023, "Transformer-VQ: linear-time transformers via vector quantization", https://arxiv.org/abs/2309.16354.

    from transformer_vq.nn.attn_vq import VQAttentionQK
    from transformer_vq.nn.config_spec import TransformerConfig

    y = VQAttentionQK(TransformerConfig(d_model=64, n_head=2, n_code=16, block_len=32))(x)  # (batch, length, 64)

Axis letters: B batch, H query heads, G key heads (H is a multiple of G), N queries, M keys, D key dimension, E value
dimension, S codes per codebook, L tokens per block.
"""
