"""Experiments as YAML: which model, which attention, which text, how much of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class AttentionSettings(_Part):
    """The attention to swap in; `settings` are the backend's own, `dense_layers` stay exact."""

    backend: str
    settings: dict[str, Any] = Field(default_factory=dict)
    dense_layers: list[int] = Field(default_factory=list)


class Text(_Part):
    """The corpus and split that perplexity is taken on; `path` where it does not come from the hub."""

    corpus: str
    split: Literal["train", "validation", "test"] = "validation"
    path: str | None = None


class Experiment(_Part):
    """One evaluation; the comments in `lsh_bitnet/configs/*.yaml` explain every key."""

    name: str
    model: str
    attention: AttentionSettings | None = None
    text: Text
    seq_len: int = Field(128, ge=2)
    batch_size: int = Field(2, ge=1)
    max_batches: int | None = Field(None, ge=1)
    device: str = "cpu"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"


def read_experiment(path: Path, changes: dict[str, Any] | None = None) -> Experiment:
    """The experiment in a file, with `changes` by dotted key ("text.corpus") applied.

    Raises ValueError that names the file, the key and what is allowed.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf8"))
    except OSError as error:
        raise ValueError(f"configuration {str(path)!r} cannot be read: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise ValueError(f"configuration {str(path)!r} is no YAML: {error}") from error
    for key, value in (changes or {}).items():
        _put(content, key.split("."), value, key)
    try:
        return Experiment.model_validate(content)
    except ValidationError as error:
        faults = "; ".join(
            f"{'.'.join(map(str, fault['loc']))}={fault['input']!r}: {fault['msg']}" for fault in error.errors()
        )
        raise ValueError(f"configuration {str(path)!r} is not allowed: {faults}") from error


def _put(content: Any, keys: list[str], value: Any, whole: str) -> None:
    for key in keys[:-1]:
        content = content.get(key) if isinstance(content, dict) else None
    if not isinstance(content, dict):
        raise ValueError(f"--set {whole} is not allowed: there is no mapping {'.'.join(keys[:-1])!r} in the file")
    content[keys[-1]] = value
