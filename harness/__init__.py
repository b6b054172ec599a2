"""Measures subjects: one case a fresh process, one flat row a measurement, everything else a function of rows."""
