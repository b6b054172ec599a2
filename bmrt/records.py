"""Results in a file, one JSON object a line, that can be added to after an interruption."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from attentions.base import require


class Records:
    """The lines of `path`; beside it, in `<path>.settings.json`, how they were made.

    A last line that was cut off by a crash is dropped and made again. Raises ValueError for lines that are no JSON
    objects, and where the file was made with other settings: results of two methods must not meet in one file.
    """

    def __init__(self, path: Path, settings: dict[str, Any], *, key: str = "id") -> None:
        self.path, self.key = path, key
        path.parent.mkdir(parents=True, exist_ok=True)
        self._agree(path.with_name(path.name + ".settings.json"), settings)
        self.lines = self._read()

    @property
    def done(self) -> set[str]:
        """Names of what is there already."""
        return {str(line[self.key]) for line in self.lines}

    def add(self, line: dict[str, Any]) -> None:
        """Append a line and have it written to the disk."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self.lines.append(line)

    def _agree(self, path: Path, settings: dict[str, Any]) -> None:
        text = json.dumps(settings, indent=1, sort_keys=True, default=str)
        if self.path.exists() and path.exists() and path.read_text(encoding="utf-8") != text:
            raise ValueError(
                f"{self.path} was made with other settings ({path.name}): give another file, or delete both"
            )
        path.write_text(text, encoding="utf-8")

    def _read(self) -> list[dict[str, Any]]:
        if not self.path.exists():
            return []
        content = self.path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            self.path.write_bytes(whole)
        return read_jsonl(self.path)


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """All objects of a file: one a line, a list of them, or a single one.

    Raises ValueError that names file and line where there is something else.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{str(path)!r} cannot be read: {error}") from error
    if text.lstrip().startswith("["):
        found = _parsed(text, str(path))
        require(all(isinstance(x, dict) for x in found), "data", str(path), "a list of objects")
        return found
    found = [_parsed(line, f"{path} line {i}") for i, line in enumerate(text.splitlines(), 1) if line.strip()]
    for i, line in enumerate(found, 1):
        require(isinstance(line, dict), "data", f"{path} line {i}", "an object")
    return found


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where} is no JSON: {error}") from error
