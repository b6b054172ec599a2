"""Harness subject for the section `vq` of conf.yml: trains a layer of transformer_vq."""
