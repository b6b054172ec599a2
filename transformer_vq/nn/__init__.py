"""Layers: attention with learnt codebooks, what trains them, and their configuration."""
