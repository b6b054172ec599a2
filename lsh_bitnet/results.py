"""Results as JSON files named by what they are and when; nothing is ever overwritten."""

from __future__ import annotations

import json
import platform
import shlex
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import transformers

FOLDER = Path("results")


def save(kind: str, values: Mapping[str, Any], folder: Path = FOLDER, *, what: str = "") -> Path:
    """Write `values`, with when, where and by which command, and return the file's path.

    It is called `<kind>_<timestamp>.json`, or `<kind>_<timestamp>_<what>.json`. Raises OSError where it cannot be
    written.
    """
    now = datetime.now(UTC)
    path = folder / f"{kind}_{now:%Y%m%dT%H%M%S_%f}Z{'_' * bool(what)}{what}.json"
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        **values,
        "finished": now.isoformat(timespec="seconds"),
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    }
    with path.open("x", encoding="utf8") as file:
        json.dump(content, file, indent=2)
        file.write("\n")
    return path
