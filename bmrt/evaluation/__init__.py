"""Evaluation of an engine: samples, records, and code shared by the evaluation commands."""
