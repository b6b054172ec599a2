"""HyperAttention: attention in near-linear time from sorted hash codes and uniform sampling.

Han, Jayaram, Karbasi, Mirrokni, Woodruff and Zandieh 2023, https://arxiv.org/abs/2310.05869.

    from hyper_attn.hyper_attn import HyperAttention
    out = HyperAttention(64)(q, k, v, causal=True)      # (batch, heads, length, 64)
"""
