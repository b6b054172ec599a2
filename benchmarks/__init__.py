"""Benchmarks: pytest-benchmark cases, and one command a family that prints its table of ratios."""
