"""Models by their number of parameters: a shape for each size, and the feed-forward width that hits it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from harness.config_grid import MOST
from harness.config_source import apply_overrides, shortened
from lsh_v2.block import Block
from lsh_v2.configuration import ModelConfig, model_config
from lsh_v2.model import LSHv2Model

# Width, heads, key/value heads and sets of weights for 24 layers; the 100M shape is the original README's.
SHAPES: dict[int, dict[str, int]] = {
    25_000_000: {"d_model": 384, "n_heads": 6, "n_kv_heads": 2, "weight_tied_layers": 6},
    100_000_000: {"d_model": 768, "n_heads": 12, "n_kv_heads": 4, "weight_tied_layers": 6},
    181_000_000: {"d_model": 1024, "n_heads": 16, "n_kv_heads": 4, "weight_tied_layers": 6},
    350_000_000: {"d_model": 1280, "n_heads": 20, "n_kv_heads": 4, "weight_tied_layers": 12},
}
UNITS = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9}


def create_lsh_v2_model(vocab_size: int = 32_000, target_params: str | int = "100M", **overrides: Any) -> LSHv2Model:
    """A model of `target_params` parameters within 3 %, every weight counted once.

    The size is a number, or text such as "25M" or "1.5B"; its shape is that of the nearest preset. `overrides` are
    keys of `ModelConfig`; `feed_forward_dim` among them is taken as it is, and the target then only names the shape.
    Raises ConfigError for keys and values that are not allowed, ValueError for sizes that the rest alone exceeds.
    """
    return LSHv2Model(sized_config(target_params, vocab_size=vocab_size, **overrides))


def model_of_command(size: str, overrides: Sequence[str]) -> LSHv2Model:
    """The model of a command's `--size` and `--set`. Raises ValueError for what is not allowed."""
    keys = apply_overrides({}, overrides, ())
    if "target_params" in keys:
        raise ValueError("--set target_params is not allowed; --size says it")
    return create_lsh_v2_model(target_params=size, **keys).eval()


def sized_config(target_params: str | int = "100M", **overrides: Any) -> ModelConfig:
    """The configuration of `create_lsh_v2_model`."""
    target = parse_size(target_params)
    shape = SHAPES[min(SHAPES, key=lambda size: max(size / target, target / size))]
    config = model_config(**{**shape, **overrides})
    if config.feed_forward_dim is not None:
        return config
    return model_config(**{**config.model_dump(), "feed_forward_dim": width_for(config, target)})


def width_for(config: ModelConfig, target: int) -> int:
    """The feed-forward width with which a configuration has `target` parameters, as nearly as it can.

    Parameters are linear in it: 3·d_model for each unit and set of weights.
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
    """Parameters of the model of a configuration, each tied weight once, without building more than one layer."""
    layer = sum(p.numel() for p in Block(config, 0).parameters())
    halting = config.d_model + 1 if config.use_ponder else 0
    return config.vocab_size * config.d_model + config.weight_sets * layer + config.d_model + halting


def parse_size(size: str | int) -> int:
    """100_000_000 of "100M". Raises ValueError for anything else than a number with K, M or B behind it, up to 2^40."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMB]?)", str(size).strip().upper(), re.ASCII)
    count = float(found[1]) * UNITS[found[2]] if found else 0.0
    if not 1 <= count <= MOST:
        raise ValueError(
            f"target_params={shortened(repr(size))} is not allowed: it must be a number from 1 to {MOST}, or text such "
            "as '100M' or '1.5B'"
        )
    return round(count)
