"""Saves results as JSON files named by content and time; existing files are never overwritten."""

from __future__ import annotations

import errno
import json
import os
import platform
import shlex
import sys
import tempfile
from collections.abc import Mapping
from contextlib import nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import transformers

from harness.common.text import LONGEST_PATH, shortened
from harness.results.run_dir import require_folder

FOLDER = Path("results")
# Maximum bytes in file names: file systems allow 255, of which 30 are for the time and separators.
LONGEST_KIND, LONGEST_WHAT, LONGEST_NAME = 100, 124, 255


def require_place(folder: Path, argument: str) -> None:
    """Raise ValueError, naming the argument, if no result can be saved in `folder`, which need not exist yet.

    This is tested by writing, because permissions do not reveal a read-only file system. Nothing is left behind.
    """
    require_folder(folder, argument)
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    longest = min(LONGEST_NAME, os.pathconf(there, "PC_NAME_MAX"))
    length = len(os.fsencode(folder.absolute())) + 1 + longest
    try:
        if length >= os.pathconf(there, "PC_PATH_MAX"):
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
        with (
            nullcontext(there) if there == folder else tempfile.TemporaryDirectory(dir=there) as place,
            tempfile.NamedTemporaryFile(dir=place, suffix="x" * (longest - 20)),
        ):
            pass
    except OSError as error:
        raise ValueError(
            f"{argument}: {shortened(str(folder), LONGEST_PATH)} cannot be written: {error.strerror}"
        ) from error


def save(kind: str, values: Mapping[str, Any], folder: Path = FOLDER, *, what: str = "") -> Path:
    """Write `values` with the time, command, and versions, and return the file's path.

    The file is called `<kind>_<timestamp>.json`, or `<kind>_<timestamp>_<what>.json`. Raises OSError if it cannot be
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
