"""A language model on any attention: model, training, long arena, pipeline."""
