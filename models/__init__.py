"""The scripts that made the weights in the folders here."""

from __future__ import annotations

from attentions.extras import missing_extra

try:
    import transformers  # noqa: F401  # every script here needs it
except ImportError as error:
    raise missing_extra("models", error) from error
