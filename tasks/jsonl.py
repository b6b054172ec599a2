"""Examples in files, one JSON object a line, and back again."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

from tasks.example import Example


def write_examples(path: Path, examples: Iterable[Example]) -> int:
    """Write all examples and say how many; `path` appears when the last is written, and not at all if that fails.

    Raises ValueError where the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with NamedTemporaryFile("w", encoding="utf-8", dir=path.parent, delete=False) as file:
            part = Path(file.name)
            try:
                count = sum(file.write(_line(example)) > 0 for example in examples)
                file.flush()
                os.fsync(file.fileno())
                part.replace(path)
            except BaseException:
                part.unlink()
                raise
    except OSError as error:
        raise ValueError(f"examples cannot be written to {str(path)!r}: {error.strerror}") from error
    return count


def read_examples(path: Path) -> Iterator[Example]:
    """The examples of a file, one at a time; empty lines are passed over.

    Raises ValueError for a file that cannot be read, and for a line that is no example: it says which and why.
    """
    try:
        with path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield _parse(line, f"{path} line {number}")
    except OSError as error:
        raise ValueError(f"examples cannot be read from {str(path)!r}: {error.strerror}") from error


def _line(example: Example) -> str:
    line = {"prompt": example.prompt, "answer": example.answer, "metadata": example.metadata}
    return json.dumps({**line, "spans": example.spans} if example.spans else line, ensure_ascii=False) + "\n"


def _parse(line: bytes, where: str) -> Example:
    try:
        data = json.loads(line)  # UTF-8; a UnicodeDecodeError is a ValueError too
    except ValueError as error:
        raise ValueError(f"{where} is no JSON: {error}") from error
    if not isinstance(data, dict):
        raise ValueError(f"{where} is no example: it must be an object with prompt and answer")
    if unknown := set(data) - {"prompt", "answer", "metadata", "spans"}:
        raise ValueError(f"{where} has unknown keys: {', '.join(sorted(unknown))}")
    for key, kind, default in (("prompt", str, None), ("answer", str, None), ("metadata", dict, {})):
        if not isinstance(data.get(key, default), kind):
            raise ValueError(f"{where}: {key} must be {'text' if kind is str else 'an object'}")
    return Example(data["prompt"], data["answer"], data.get("metadata", {}), _spans(data, where))


def _spans(data: dict[str, Any], where: str) -> tuple[tuple[int, int], ...]:
    end, found = 0, []
    for span in data.get("spans", []):
        ordered = isinstance(span, list) and len(span) == 2 and all(type(place) is int for place in span)
        if not ordered or not end <= span[0] <= span[1] <= len(data["prompt"]):
            raise ValueError(f"{where}: spans must be [start, end] pairs within the prompt, in order: {span}")
        found.append((span[0], span[1]))
        end = span[1]
    return tuple(found)
