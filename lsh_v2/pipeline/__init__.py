"""The training and benchmark pipeline, `python -m lsh_v2.pipeline`."""
