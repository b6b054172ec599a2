"""LSH v2 attention; read `attention` first."""

from attentions.lsh_v2.attention import LSHv2

__all__ = ["LSHv2"]
