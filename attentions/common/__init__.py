"""Shared by all backends: checks of inputs and settings, the float64 definition, caches, and exit handling."""
