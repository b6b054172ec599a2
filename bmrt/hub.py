"""Data sets of the Hugging Face hub, or of its cache on this machine."""

from __future__ import annotations

from typing import Any

from attentions.base import require
from attentions.extras import missing_extra
from harness.command_line import one_line
from harness.config_source import shortened


def load_hub(name: str, config: str | None, split: str) -> Any:
    """A data set as rows. Raises ValueError, with what to do, where there is none."""
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
            "file, 'generated', or a hub id that is in the cache or can be downloaded"
        ) from error
