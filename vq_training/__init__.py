"""The section `vq` of conf.yml as a subject of the harness: a layer of transformer_vq that is trained."""
