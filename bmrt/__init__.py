"""KV-cache compression for Hugging Face models, with memory that is bounded."""

from __future__ import annotations

import pkgutil as _pkgutil
from typing import TYPE_CHECKING

import lazy_loader as _lazy

from attentions.extras import require_installed

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
__getattr__, __dir__, _ = _lazy.attach(
    __name__,
    {module.name for module in _pkgutil.iter_modules(__path__)},
    {
        "budget": ["Budget"],
        "cache": ["BoundedCache"],
        "engine": ["RecursiveCompressionEngine"],
        "settings": ["Settings"],
        "strategies": ["STRATEGIES", "Hybrid", "build_strategy"],
    },
)
