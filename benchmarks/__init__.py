"""Benchmarks: pytest-benchmark cases, and one command per family that prints its table of ratios."""
