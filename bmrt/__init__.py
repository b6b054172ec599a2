"""KV-cache compression for Hugging Face models with bounded memory."""

from __future__ import annotations

import pkgutil as _pkgutil
from typing import TYPE_CHECKING

import lazy_loader as _lazy

from attentions.common.extras import require_installed

require_installed("transformers", "models")  # every module below needs it

if TYPE_CHECKING:
    from bmrt.cache.bounded_cache import BoundedCache
    from bmrt.cache.budget import Budget
    from bmrt.cache.engine import RecursiveCompressionEngine
    from bmrt.cache.settings import Settings
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
__getattr__, __dir__, _ = _lazy.attach(
    __name__,
    {module.name for module in _pkgutil.iter_modules(__path__)},
    {
        "cache.budget": ["Budget"],
        "cache.bounded_cache": ["BoundedCache"],
        "cache.engine": ["RecursiveCompressionEngine"],
        "cache.settings": ["Settings"],
        "strategies": ["STRATEGIES", "Hybrid", "build_strategy"],
    },
)
