"""Small models that are part of the project, in a clone as in an installed copy."""

from __future__ import annotations

from pathlib import Path

from harness.common.source_hash import ROOT


def packaged_models() -> dict[str, Path]:
    """Map the name of each model in `models/` to its folder, which transformers can load."""
    return {path.parent.name: path.parent for path in sorted((ROOT / "models").glob("*/config.json"))}
