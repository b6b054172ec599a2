"""Model sizes: a shape for each preset, and the feed-forward width that reaches a number of parameters."""

from __future__ import annotations

import re
from typing import Any

from harness.common.text import shortened
from harness.config.grid import MAX_SIZE
from lsh_v2.common.configuration import ModelConfig, model_config
from lsh_v2.model.block import Block

# Width, heads, key/value heads, and weight sets for 24 layers; the 100M shape is from the original README.
SHAPES: dict[int, dict[str, int]] = {
    25_000_000: {"d_model": 384, "n_heads": 6, "n_kv_heads": 2, "weight_tied_layers": 6},
    100_000_000: {"d_model": 768, "n_heads": 12, "n_kv_heads": 4, "weight_tied_layers": 6},
    181_000_000: {"d_model": 1024, "n_heads": 16, "n_kv_heads": 4, "weight_tied_layers": 6},
    350_000_000: {"d_model": 1280, "n_heads": 20, "n_kv_heads": 4, "weight_tied_layers": 12},
}
UNITS = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9}


def sized_config(target_params: str | int = "100M", **overrides: Any) -> ModelConfig:
    """Return the configuration for `create_lsh_v2_model`, which documents the arguments."""
    target = parse_size(target_params)
    shape = SHAPES[min(SHAPES, key=lambda size: max(size / target, target / size))]
    config = model_config(**{**shape, **overrides})
    if config.feed_forward_dim is not None:
        return config
    return model_config(**{**config.model_dump(), "feed_forward_dim": width_for(config, target)})


def width_for(config: ModelConfig, target: int) -> int:
    """Return the feed-forward width with which a configuration comes closest to `target` parameters.

    The count is linear in the width: each unit adds 3·d_model parameters per weight set.
    """
    thin = config.model_copy(update={"feed_forward_dim": 1})
    each = 3 * config.d_model * config.weight_sets
    rest = parameters(thin) - each
    width = round((target - rest) / each)
    if width < 1 or abs(rest + width * each - target) > 0.03 * target:
        raise ValueError(
            f"target_params={target:,} cannot be reached: embedding and attention of d_model={config.d_model}, "
            f"vocab_size={config.vocab_size} and {config.weight_sets} sets of weights are {rest:,} parameters, "
            f"and each unit of feed-forward width adds {each:,}"
        )
    return width


def parameters(config: ModelConfig) -> int:
    """Count a configuration's parameters, each tied weight once, without building more than one layer."""
    layer = sum(p.numel() for p in Block(config, 0).parameters())
    halting = config.d_model + 1 if config.use_ponder else 0
    return config.vocab_size * config.d_model + config.weight_sets * layer + config.d_model + halting


def parse_size(size: str | int) -> int:
    """Parse a size such as "100M". Raises ValueError for anything but a number up to 2^40, with K, M, B, or no unit."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMB]?)", str(size).strip().upper(), re.ASCII)
    count = float(found[1]) * UNITS[found[2]] if found else 0.0
    if not 1 <= count <= MAX_SIZE:
        raise ValueError(
            f"target_params={shortened(repr(size))} is not allowed: it must be a number from 1 to {MAX_SIZE}, or text "
            "such as '100M' or '1.5B'"
        )
    return round(count)
