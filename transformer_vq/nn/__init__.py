"""Layers: attention with learnt codebooks, codebook training, and configuration."""
