"""Attention by vector quantisation."""
