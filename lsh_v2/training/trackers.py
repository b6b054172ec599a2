"""Checks the trackers that log metrics during training: TensorBoard always, others by name, through accelerate."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence


def require_installed(names: Sequence[str]) -> None:
    """Raise ValueError for a tracker whose package is not installed."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise ValueError(f"tracker {name} is not installed: run `pip install {name}`, or remove it from trackers")
