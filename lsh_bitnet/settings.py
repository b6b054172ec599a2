"""Schema of YAML experiments: model, attention, text, and size of the evaluation."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from attentions import resolve
from harness.config.errors import mistakes_of
from harness.config.yaml_source import ConfigError, apply_overrides, read_mapping
from lsh_bitnet.models import require_device
from lsh_bitnet.results import LONGEST_KIND
from tasks.corpora import CORPORA

MAX_COUNT = 2**31 - 1


def _backend(name: str) -> str:
    resolve(name)
    return name


def _corpus(name: str) -> str:
    if name not in (known := ("stdlib", *CORPORA)):
        raise ValueError(f"it must be one of {', '.join(known)}")
    return name


def _path(path: str) -> str:
    if "\0" in path or not os.path.exists(path):  # noqa: PTH110, Path raises for a name that is too long
        raise ValueError("there is no such file or folder")
    return path


def _file_name(name: str) -> str:
    if (size := len(name.encode())) > LONGEST_KIND:
        raise ValueError(f"it is used in file names: it must have at most {LONGEST_KIND} bytes, not {size}")
    return name


def _device(device: str) -> str:
    require_device(device)
    return device


Name = Annotated[str, Field(min_length=1, max_length=1000)]
Layer = Annotated[int, Field(strict=True)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class AttentionSettings(_Part):
    """The attention to swap in; `settings` are the backend's own, and `dense_layers` stay exact."""

    backend: Annotated[Name, AfterValidator(_backend)] = Field(
        description="the name of a backend or package.module:Class"
    )
    settings: dict[str, Any] = Field(default_factory=dict, description="a mapping of the backend's settings")
    dense_layers: list[Layer] = Field(default_factory=list, description="a list of integers")


class TextSettings(_Part):
    """Corpus and split for perplexity; `path` if it does not come from the hub."""

    corpus: Annotated[Name, AfterValidator(_corpus)] = Field(description="wikitext2, wikitext103, enwik8 or stdlib")
    split: Literal["train", "validation", "test"] = Field("validation", description="train, validation or test")
    path: Annotated[Name, AfterValidator(_path)] | None = Field(
        None, description="null or the path of a text file or of a folder of Parquet files"
    )


class Experiment(_Part):
    """One evaluation; the comments in `lsh_bitnet/configs/*.yaml` explain every key."""

    name: Annotated[str, Field(pattern=r"^[\w.+-]+$"), AfterValidator(_file_name)] = Field(
        description="letters, digits, dots, hyphens and underscores, as it is used in file names"
    )
    model: Name = Field(description="the name of a model, a folder, or a hub id")
    attention: AttentionSettings | None = Field(None, description="null or a mapping with backend")
    text: TextSettings = Field(description="a mapping with corpus")
    seq_len: int = Field(128, ge=2, le=MAX_COUNT, strict=True, description="an integer of at least 2")
    batch_size: int = Field(2, ge=1, le=MAX_COUNT, strict=True, description="an integer of at least 1")
    max_batches: int | None = Field(
        None, ge=1, le=MAX_COUNT, strict=True, description="null (all) or an integer of at least 1"
    )
    device: Annotated[str, AfterValidator(_device)] = Field("cpu", description="cpu, cuda, cuda:<index> or mps")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="auto, float32, bfloat16 or float16"
    )


def read_experiment(path: Path, changes: Sequence[str] = ()) -> Experiment:
    """Read an experiment from a file and apply `changes` ("text.corpus=stdlib").

    Raises ValueError with one line per mistake, naming the file, the key, the value, and the allowed values.
    """
    return experiment_of(apply_overrides(read_mapping(path), changes, ()), str(path))


def experiment_of(values: dict[str, Any], source: str) -> Experiment:
    """Build an experiment from values. Raises ValueError like `read_experiment`, naming `source`."""
    try:
        return Experiment.model_validate(values)
    except ValidationError as error:
        raise ConfigError(mistakes_of(error, Experiment, values), source) from error
