"""KV-cache compression for Hugging Face models, with memory that is bounded."""

from attentions.extras import missing_extra

try:
    import transformers  # noqa: F401  # every module below needs it
except ImportError as error:
    raise missing_extra("models", error) from error

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
