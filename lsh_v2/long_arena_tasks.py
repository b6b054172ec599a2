"""Tasks of `tasks/` in the form that training takes them: made with a seed alone, other for training and evaluation."""

from __future__ import annotations

from tasks.text_classification import TextClassification


def text_classification(*, length: int, wording: str = "short", seed: int) -> TextClassification:
    """Training takes even seeds, evaluation the odd one after it: so it reads files that training has not seen."""
    return TextClassification(length, wording=wording, split="held_out" if seed % 2 else "train", seed=seed)
