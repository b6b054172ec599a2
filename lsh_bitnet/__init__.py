"""Replaces the attention of a Hugging Face model, such as BitNet, counts its comparisons, and measures the effect."""

from __future__ import annotations

import pkgutil as _pkgutil
from typing import TYPE_CHECKING

import lazy_loader as _lazy

from attentions.common.extras import require_installed

require_installed("transformers", "models")  # every module below needs it

if TYPE_CHECKING:
    from lsh_bitnet.capture import capture
    from lsh_bitnet.comparisons import ComparisonLog
    from lsh_bitnet.models import Loaded, load_model
    from lsh_bitnet.swap import Swap, attend_with, register

__all__ = ["ComparisonLog", "Loaded", "Swap", "attend_with", "capture", "load_model", "register"]
__getattr__, __dir__, _ = _lazy.attach(
    __name__,
    {module.name for module in _pkgutil.iter_modules(__path__)} - {"capture"},
    {
        "capture": ["capture"],
        "comparisons": ["ComparisonLog"],
        "models": ["Loaded", "load_model"],
        "swap": ["Swap", "attend_with", "register"],
    },
)
