"""Token-selection strategies by name. To add one, add a file and a line in `STRATEGIES`."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from attentions.common.settings import require
from bmrt.strategies.base import Strategy, View
from bmrt.strategies.exact import Exact
from bmrt.strategies.frequency_rank import FrequencyRank
from bmrt.strategies.h2o import H2O
from bmrt.strategies.hybrid import Hybrid
from bmrt.strategies.key_norm import KeyNorm
from bmrt.strategies.magicpig import MagicPIG
from bmrt.strategies.random_keep import RandomKeep
from bmrt.strategies.recent import Recent
from bmrt.strategies.snapkv import SnapKV

__all__ = ["STRATEGIES", "Hybrid", "Strategy", "View", "build_strategy"]

STRATEGIES: Mapping[str, type[Strategy]] = MappingProxyType(
    {
        "exact": Exact,
        "frequency_rank": FrequencyRank,
        "magicpig_baseline": MagicPIG,
        "random": RandomKeep,
        "recent": Recent,
        "key_norm": KeyNorm,
        "snapkv": SnapKV,
        "h2o": H2O,
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
