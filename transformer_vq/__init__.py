"""Attention by vector quantisation: of keys, and of queries and keys."""
