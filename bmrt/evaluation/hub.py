"""Loads data sets from the Hugging Face hub or its local cache."""

from __future__ import annotations

from typing import Any

from attentions.common.extras import missing_extra
from attentions.common.settings import require
from harness.common.command_line import one_line
from harness.common.text import shortened


def load_hub(name: str, config: str | None, split: str) -> Any:
    """Load a data set as rows. Raises ValueError, with a remedy, if there is none."""
    require(bool(name), "data", name, "'generated', a .jsonl file or a hub id")
    try:
        from datasets import load_dataset
        from datasets.exceptions import DatasetsError
    except ImportError as error:
        raise missing_extra("models", error) from error
    try:
        return load_dataset(name, config, split=split)
    except (OSError, ValueError, RuntimeError, LookupError, DatasetsError) as error:
        raise ValueError(
            f"data set {shortened(name)!r} ({config}, {split}) cannot be loaded: {one_line(error)}. Give a .jsonl "
            "file, 'generated', or a hub id that is cached or can be downloaded"
        ) from error
