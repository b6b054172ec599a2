"""Writes and reads examples as files with one JSON object per line."""

from __future__ import annotations

import json
import os
from codecs import BOM_UTF8
from collections.abc import Iterable, Iterator
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

from pydantic_core import from_json

from tasks.example import Example

LONGEST = 80  # maximum characters of a value in a message
NEAR = 20  # bytes shown on each side of invalid JSON


def write_examples(path: Path, examples: Iterable[Example]) -> int:
    """Write all examples and return their number; `path` is created atomically, or not at all if writing fails.

    Raises ValueError if the file cannot be written, and for an example whose text cannot be encoded.
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
    """Read the examples of a file one at a time; empty lines are skipped.

    Raises ValueError for a file that cannot be read, and for an invalid line, with its number and the reason.
    """
    return (example for _, example in numbered_examples(path))


def numbered_examples(path: Path) -> Iterator[tuple[int, Example]]:
    """Read examples like `read_examples`, each with its line number, from 1."""
    try:
        with path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield number, _parse(line.removeprefix(BOM_UTF8).rstrip(), f"{path} line {number}")
    except OSError as error:
        raise ValueError(f"examples cannot be read from {str(path)!r}: {error.strerror}") from error


def _line(example: Example) -> str:
    line = {"prompt": example.prompt, "answer": example.answer, "metadata": example.metadata}
    text = json.dumps({**line, "spans": example.spans} if example.spans else line, ensure_ascii=False) + "\n"
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half, near = text[error.start], text[max(0, error.start - 40) : error.start]
        raise ValueError(f"an example cannot be written: {half!r} after {near!r} is a lone surrogate") from error
    return text


def _parse(line: bytes, location: str) -> Example:
    try:
        data = from_json(line)  # rejects invalid text and nesting beyond 200 levels
    except ValueError as error:
        reason, _, place = str(error).partition(" at line 1 column ")
        near = line[max(0, int(place) - NEAR) : int(place) + NEAR].decode("utf-8", errors="backslashreplace").strip()
        allowed = "a line must be a JSON object in UTF-8, without lone surrogates, nested at most 200 deep"
        raise ValueError(f"{location} is not valid JSON: {reason} at byte {place}, near {near!r}; {allowed}") from error
    if not isinstance(data, dict):
        raise ValueError(f"{location} is not an example: it must be an object with prompt and answer: {_shown(data)}")
    if unknown := set(data) - {"prompt", "answer", "metadata", "spans"}:
        known = "known keys are prompt, answer, metadata and spans"
        raise ValueError(f"{location} has unknown keys: {', '.join(map(_shown, sorted(unknown)))}; {known}")
    _require(data, "prompt", str, location)
    _require(data, "answer", str, location)
    metadata: dict[str, Any] = _require({"metadata": {}, **data}, "metadata", dict, location)
    if isinstance(kind := metadata.get("task", ""), bool) or not isinstance(kind, str | int | float):
        raise ValueError(f"{location}: metadata: task must be text or a number: {_shown(kind)}")
    return Example(data["prompt"], data["answer"], metadata, _spans(data, location))


def _require(data: dict[str, Any], key: str, kind: type, location: str) -> Any:
    """Return the value of a key. Raises ValueError if it has the wrong type."""
    if not isinstance(data.get(key), kind):
        found = _shown(data[key]) if key in data else "it is missing"
        raise ValueError(f"{location}: {key} must be {'text' if kind is str else 'an object'}: {found}")
    return data[key]


def _spans(data: dict[str, Any], location: str) -> tuple[tuple[int, int], ...]:
    allowed = "spans must be [start, end] pairs within the prompt, in order"
    spans = data.get("spans", [])
    if not isinstance(spans, list):
        raise ValueError(f"{location}: {allowed}: {_shown(spans)}")
    end, found = 0, []
    for span in spans:
        ordered = isinstance(span, list) and len(span) == 2 and all(type(place) is int for place in span)
        if not ordered or not end <= span[0] <= span[1] <= len(data["prompt"]):
            raise ValueError(f"{location}: {allowed}: {_shown(span)}")
        found.append((span[0], span[1]))
        end = span[1]
    return tuple(found)


def _shown(value: object) -> str:
    """Format a value as JSON on one line, truncated if it is long."""
    text = json.dumps(value)
    return text if len(text) <= LONGEST else text[: LONGEST - 3] + "..."
