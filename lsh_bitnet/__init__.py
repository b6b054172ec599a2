"""Any registered attention inside a Hugging Face model, BitNet first; its comparisons counted, its cost measured."""

from __future__ import annotations

from attentions.extras import missing_extra

try:
    import transformers  # noqa: F401  # every module below needs it
except ImportError as error:
    raise missing_extra("models", error) from error

from lsh_bitnet.capture import capture
from lsh_bitnet.comparisons import ComparisonLog
from lsh_bitnet.models import Loaded, load_model
from lsh_bitnet.swap import Swap, attend_with, register

__all__ = ["ComparisonLog", "Loaded", "Swap", "attend_with", "capture", "load_model", "register"]
