"""KV-cache compression for Hugging Face models, with memory that is bounded."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attentions.extras import require_installed
from attentions.on_demand import on_demand

require_installed("transformers", "models")  # every module below needs it

if TYPE_CHECKING:
    from bmrt.budget import Budget
    from bmrt.cache import BoundedCache
    from bmrt.engine import RecursiveCompressionEngine
    from bmrt.settings import Settings
    from bmrt.strategies import STRATEGIES, Hybrid, build_strategy

__all__ = [
    "STRATEGIES",
    "BoundedCache",
    "Budget",
    "Hybrid",
    "RecursiveCompressionEngine",
    "Settings",
    "build_strategy",
]
__getattr__ = on_demand(
    "bmrt",
    budget=("Budget",),
    cache=("BoundedCache",),
    engine=("RecursiveCompressionEngine",),
    settings=("Settings",),
    strategies=("STRATEGIES", "Hybrid", "build_strategy"),
)
