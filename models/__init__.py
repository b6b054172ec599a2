"""Scripts that create the weights in the folders of this package."""

from __future__ import annotations

from attentions.common.extras import require_installed

require_installed("transformers", "models")  # every script here needs it
