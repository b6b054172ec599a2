"""Token-selection strategies by name. To add one, add one file and one line in `STRATEGIES`."""

from __future__ import annotations

from collections.abc import Mapping
from pkgutil import resolve_name
from types import MappingProxyType
from typing import Any

from attentions.common.settings import require
from bmrt.strategies.base import Strategy, View
from bmrt.strategies.hybrid import Hybrid

__all__ = ["STRATEGIES", "Hybrid", "Strategy", "View", "build_strategy"]

STRATEGIES: Mapping[str, type[Strategy]] = MappingProxyType(
    {
        "exact": resolve_name("bmrt.strategies.exact:Exact"),
        "frequency_rank": resolve_name("bmrt.strategies.frequency_rank:FrequencyRank"),
        "magicpig_baseline": resolve_name("bmrt.strategies.magicpig:MagicPIG"),
        "random": resolve_name("bmrt.strategies.random_keep:RandomKeep"),
        "recent": resolve_name("bmrt.strategies.recent:Recent"),
        "key_norm": resolve_name("bmrt.strategies.key_norm:KeyNorm"),
        "snapkv": resolve_name("bmrt.strategies.snapkv:SnapKV"),
        "h2o": resolve_name("bmrt.strategies.h2o:H2O"),
    }
)


def build_strategy(name: str, **settings: Any) -> Strategy:
    """Build a strategy by name with its own settings; `hybrid` is built from two strategies (`Hybrid`).

    Raises ValueError for an unknown name, an unknown setting, and invalid values.
    """
    require(name in STRATEGIES, "strategy", name, f"one of {', '.join(STRATEGIES)}")
    try:
        return STRATEGIES[name](**settings)
    except TypeError as error:
        raise ValueError(f"strategy {name!r} does not accept these settings: {error}") from error
