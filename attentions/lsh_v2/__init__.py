"""LSH v2 attention; start reading at `attention`."""

from attentions.lsh_v2.attention import LSHv2

__all__ = ["LSHv2"]
