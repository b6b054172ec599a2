"""Code shared by the whole harness: rows, metrics, import paths, source hashes and messages."""
