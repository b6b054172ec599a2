"""Any registered attention inside a Hugging Face model, BitNet first; its comparisons counted, its cost measured."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attentions.extras import require_installed
from attentions.on_demand import on_demand

require_installed("transformers", "models")  # every module below needs it

if TYPE_CHECKING:
    from lsh_bitnet.capturing import capture
    from lsh_bitnet.comparisons import ComparisonLog
    from lsh_bitnet.models import Loaded, load_model
    from lsh_bitnet.swap import Swap, attend_with, register

__all__ = ["ComparisonLog", "Loaded", "Swap", "attend_with", "capture", "load_model", "register"]
__getattr__ = on_demand(
    "lsh_bitnet",
    capturing=("capture",),
    comparisons=("ComparisonLog",),
    models=("Loaded", "load_model"),
    swap=("Swap", "attend_with", "register"),
)
