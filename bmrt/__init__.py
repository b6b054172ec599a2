"""KV-cache compression for Hugging Face models, with memory that is bounded."""

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
