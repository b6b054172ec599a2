"""The language model: layers, memory, decoding, and model sizes."""
