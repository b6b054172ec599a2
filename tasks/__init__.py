"""Tasks and data sets, one per file."""
