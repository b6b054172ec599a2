"""Benchmark harness: measures each case in a fresh process, writes one row per measurement, and reports from rows."""
