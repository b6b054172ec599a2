"""Measure one call in its own process: time, memory, roofline, and the gate."""
