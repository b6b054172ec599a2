"""Benchmarks: pytest-benchmark cases, other packages' attentions, and experiments that are no sweep."""
