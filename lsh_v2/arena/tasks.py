"""Adapters that build tasks from a seed alone, with different data for training and evaluation."""

from __future__ import annotations

from tasks.text_classification import TextClassification


def text_classification(*, length: int, wording: str = "short", seed: int) -> TextClassification:
    """Build the task. Even seeds are for training, odd ones for evaluation, which reads files not seen in training."""
    return TextClassification(length, wording=wording, split="held_out" if seed % 2 else "train", seed=seed)
