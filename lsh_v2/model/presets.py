"""Builds models by number of parameters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from harness.config.yaml_source import apply_overrides
from lsh_v2.model.language_model import LSHv2Model
from lsh_v2.model.sizes import sized_config


def create_lsh_v2_model(vocab_size: int = 32_000, target_params: str | int = "100M", **overrides: Any) -> LSHv2Model:
    """Build a model with `target_params` parameters within 3 %, counting shared weights once.

    The size is a number, or text such as "25M" or "1.5B"; the shape is that of the nearest preset. `overrides` are keys
    of `ModelConfig`. If `feed_forward_dim` is among them, it is used as given, and the target only selects the shape.
    Raises ConfigError for invalid keys and values, ValueError for sizes that cannot be reached.
    """
    return LSHv2Model(sized_config(target_params, vocab_size=vocab_size, **overrides))


def model_of_command(size: str, overrides: Sequence[str]) -> LSHv2Model:
    """Build the model from a command's `--size` and `--set`. Raises ValueError for invalid values."""
    keys = apply_overrides({}, overrides, ())
    if "target_params" in keys:
        raise ValueError("--set target_params is not allowed; use --size")
    return create_lsh_v2_model(target_params=size, **keys).eval()
