"""Recurrences over a bounded state: definitions, scans, and the Mamba blocks."""
