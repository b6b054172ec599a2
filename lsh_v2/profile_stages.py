"""The harness's report on the stages of a model's attention: gated, in fresh processes, beside its authors' claims."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import harness.profile
from attentions import Attention, resolve, settings_of
from lsh_v2.configuration import ModelConfig

CONF = Path(__file__).parents[1] / "conf.yml"


def report_stages(config: ModelConfig, out: Path, *, lengths: Sequence[int], total_s: float = 120.0) -> int:
    """Run `harness.profile` on a model's attention alone, into `out`; returns its exit status.

    An attention that names no stages has nothing to report on, which is said, and no failure. Raises ConfigError where
    the configuration does not fit the harness, FolderError where `out` holds a run already.
    """
    backend = resolve(config.attention)
    if backend.components is Attention.components:
        print(f"{config.attention} names no stages, so there is no report on them")
        return 0
    size = next((name for name in ("bucket_size", "window") if name in settings_of(backend)), None)
    settings = ({} if size is None else {size: config.bucket_size}) | config.attention_settings
    # In the harness a list is an axis, and a list within it a value.
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
    return harness.profile.profile(CONF, overrides, str(out), "python -m lsh_v2.profile")
