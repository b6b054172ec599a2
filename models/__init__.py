"""The scripts that made the weights in the folders here."""

from __future__ import annotations

from attentions.extras import require_installed

require_installed("transformers", "models")  # every script here needs it
