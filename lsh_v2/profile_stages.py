"""Runs the harness's profile report on the stages of a model's attention."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import harness.profile
from attentions import Attention, resolve, settings_of
from harness.config.model import default_configuration

if TYPE_CHECKING:
    from lsh_v2.common.configuration import ModelConfig


def report_stages(config: ModelConfig, out: Path, *, lengths: Sequence[int], total_s: float = 120.0) -> int:
    """Run `harness.profile` on a model's attention alone and write to `out`; returns its exit status.

    An attention without named stages prints a message and returns 0. Raises ConfigError if
    the configuration does not fit the harness, FolderError if `out` already holds a run.
    """
    backend = resolve(config.attention)
    if backend.components is Attention.components:
        print(f"{config.attention} defines no stages, so there is no report on them")
        return 0
    size = next((name for name in ("bucket_size", "window") if name in settings_of(backend)), None)
    settings = ({} if size is None else {size: config.bucket_size}) | config.attention_settings
    # In the harness, a list is an axis, so a list value needs another list around it.
    settings = {name: [x] if isinstance(x, list | tuple) else x for name, x in settings.items()}
    chosen = {
        "backends": [{"name": config.attention, **settings}],
        "lengths": list(lengths),
        "batch": 1,
        "heads": config.n_heads,
        "kv_heads": config.n_kv_heads,
        "head_dim": config.key_dim,
        "value_dim": config.head_dim,
        "causal": config.causal,
        "rounds": 3,
        "budget.total_s": total_s,
        "also": [],
        "expect": {},
    }
    overrides = [f"{key}={json.dumps(value)}" for key, value in chosen.items()]
    return harness.profile.profile(default_configuration(), overrides, str(out), "python -m lsh_v2.profile")
