"""Result files with one JSON object per line that can be continued after an interruption."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from attentions.common.settings import require
from harness.common.atomic_write import write_whole


class Records:
    """The lines of `path`; how they were made is stored in `notes` (default: `<path>.settings.json`).

    `settings` is everything that results depend on except the questions; `samples` maps the name of each question to a
    digest, and grows as more are asked. A last line cut off by a crash is dropped and made again. Write to a file only
    within `locked(path)`.

    Raises ValueError for lines that are not JSON objects or lack `key`, for a duplicate name, and if the file was made
    with other or unknown settings or questions, so that results of different runs never share a file.
    """

    def __init__(
        self,
        path: Path,
        settings: Mapping[str, Any],
        *,
        key: str = "id",
        samples: Mapping[str, str] | None = None,
        notes: Path | None = None,
    ) -> None:
        self.path, self.key = path, key
        self._notes = notes or _notes_beside(path)
        for folder in (path.parent, self._notes.parent):
            folder.mkdir(parents=True, exist_ok=True)
        # Round-trip through JSON, to compare with what is read back.
        self._agree({"settings": json.loads(_dumped(settings)), "samples": dict(samples or {})})
        self.lines = self._read()

    @property
    def done(self) -> set[str]:
        """Names of the samples already recorded."""
        return {str(line[self.key]) for line in self.lines}

    def add(self, line: dict[str, Any]) -> None:
        """Append a line and sync it to disk; a partial write is undone."""
        text = json.dumps(line) + "\n"  # ASCII, so that no character breaks the line or is invalid UTF-8
        with self.path.open("ab") as file:
            before = file.tell()
            try:
                file.write(text.encode())
                file.flush()
                os.fsync(file.fileno())
            except OSError:
                os.truncate(self.path, before)
                raise
        self.lines.append(line)

    def _agree(self, made: dict[str, dict[str, Any]]) -> None:
        if self.path.exists() and self.path.stat().st_size:
            made["samples"] = self._require_same(made)
        text = json.dumps(made, indent=1, sort_keys=True)
        if not self._notes.exists() or self._notes.read_text(encoding="utf-8") != text:
            write_whole(self._notes, text)

    def _require_same(self, made: dict[str, dict[str, Any]]) -> dict[str, Any]:
        """Return all questions, including earlier ones. Raises ValueError if the file was made differently."""
        remedy = "give another folder or delete the file"
        if not self._notes.exists():
            raise ValueError(
                f"{self.path} exists, but {self._notes}, which records how it was made, does not: {remedy}"
            )
        before = _parsed(self._notes.read_text(encoding="utf-8"), str(self._notes))
        if not isinstance(before, dict) or not all(isinstance(before.get(name), dict) for name in made):
            raise ValueError(f"{self._notes} does not say how {self.path} was made: {remedy}")
        old, new = before["settings"], made["settings"]
        changed = [
            f"{name} was {old.get(name)!r} and is {new.get(name)!r}"
            for name in {**old, **new}
            if old.get(name) != new.get(name)
        ]
        if changed:
            raise ValueError(f"{self.path} was made with other settings ({'; '.join(changed)}): {remedy}")
        asked, now = before["samples"], made["samples"]
        if others := [name for name in now if asked.get(name, now[name]) != now[name]]:
            raise ValueError(f"{self.path} has answers to a different question with id {others[0]!r}: {remedy}")
        return asked | now

    def _read(self) -> list[dict[str, Any]]:
        if not self.path.exists():
            return []
        content = self.path.read_bytes()
        end = content.rfind(b"\n") + 1
        if content[end:]:
            try:
                json.loads(content[end:])
            except ValueError:
                os.truncate(self.path, end)
            else:  # only the newline is missing
                with self.path.open("ab") as file:
                    file.write(b"\n")
        lines = read_jsonl(self.path)
        for i, line in enumerate(lines, 1):
            require(self.key in line, f"{self.path} line {i}", [*line], f"an object with {self.key!r}")
        require_unique([str(line[self.key]) for line in lines], f"{self.key} in {self.path}")
        return lines


@contextmanager
def locked(path: Path, notes: Path | None = None) -> Iterator[None]:
    """Lock `path` against writing by other processes. Raises ValueError if another process holds the lock."""
    lock = (notes or _notes_beside(path)).with_suffix(".lock")
    lock.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(lock, timeout=0):
            yield
    except Timeout as error:
        raise ValueError(f"another process is writing {path}: wait for it, or give another folder") from error


def require_unique(names: Iterable[str], what: str) -> None:
    """Raise ValueError that names the first duplicate in `names`."""
    for name, times in Counter(names).items():
        require(times == 1, what, name, f"unique, not repeated {times} times")


def digest_of(value: Any) -> str:
    """Return a short hash of a JSON-serialisable value."""
    return hashlib.sha256(_dumped(value).encode()).hexdigest()[:16]


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Read all objects of a file: one per line, a list, or a single object.

    Raises ValueError that names the file and line of anything else.
    """
    return [found for _, found in _numbered(path)]


def read_data(path: Path) -> list[dict[str, Any]]:
    """Read objects like `read_jsonl`, and check that their text can be encoded.

    Raises ValueError also for unpaired surrogates.
    """
    rows = _numbered(path)
    for location, row in rows:
        text = json.dumps(row, ensure_ascii=False)
        try:
            text.encode()
        except UnicodeEncodeError as error:
            half = text[error.start]
            raise ValueError(f"{location} holds {half!r}, a lone surrogate, which no tokenizer can read") from error
    return [row for _, row in rows]


def _numbered(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """Return the objects of a file, each with its location."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{str(path)!r} cannot be read: {error}") from error
    if text.lstrip().startswith("["):
        found = _parsed(text, str(path))
        require(all(isinstance(x, dict) for x in found), "data", str(path), "a list of objects")
        return [(f"{path} item {i}", x) for i, x in enumerate(found, 1)]
    # Split at "\n" only: JSON strings may contain other line separators.
    lines = [(f"{path} line {i}", line) for i, line in enumerate(text.split("\n"), 1) if line.strip()]
    rows = [(location, _parsed(line, location)) for location, line in lines]
    for location, row in rows:
        require(isinstance(row, dict), "data", location, "an object")
    return rows


def _notes_beside(path: Path) -> Path:
    return path.with_name(path.name + ".settings.json")


def _dumped(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def _parsed(text: str, location: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{location} is not valid JSON: {error}") from error
