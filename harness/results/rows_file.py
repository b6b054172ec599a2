"""Read and append the rows of a run: each row is synced to disk when written, and rows are never rewritten.

A sweep may be killed at any byte. Everything already written is kept: a torn line is skipped with a warning, and the
next row starts on a new line.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from harness.common.rows import SCHEMA, Row
from harness.config.errors import reason_of
from harness.config.yaml_source import show

ROWS = "rows.jsonl"

log = logging.getLogger(__name__)


class JournalError(ValueError):
    """Rows that cannot be read or written; the message says where, why and what to do."""


class Journal:
    """The only writer of a folder's `rows.jsonl`; appends rows."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / ROWS
        self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._end_torn_line()
        except BlockingIOError as error:
            self.close()
            raise JournalError(f"{folder} is in use: another sweep is writing {ROWS}") from error
        except OSError as error:
            self.close()
            raise self._unwritable(error) from error

    def append(self, row: Row) -> None:
        """Write a row and wait until it is on disk. Raises JournalError on failure, leaving all earlier rows intact."""
        line = (row.model_dump_json(by_alias=True) + "\n").encode()
        before = os.fstat(self._file).st_size
        try:
            _write(self._file, line)
            os.fsync(self._file)
        except OSError as error:
            os.ftruncate(self._file, before)  # a partial line is useless
            raise self._unwritable(error) from error

    def close(self) -> None:
        """Release the file to other writers."""
        os.close(self._file)

    def _end_torn_line(self) -> None:
        size = os.fstat(self._file).st_size
        if size and os.pread(self._file, 1, size - 1) != b"\n":
            _write(self._file, b"\n")

    def _unwritable(self, error: OSError) -> JournalError:
        return JournalError(
            f"{self._path} cannot be written: {error.strerror}. Rows written so far are kept; free some "
            f"space and continue with --resume {self._path.parent}"
        )


def read_rows(folder: Path) -> list[Row]:
    """Read all rows of a run in the order written; empty if there is no file.

    A line that is not JSON (truncated by a kill) is skipped with a warning in the log. Raises JournalError for a row of
    another schema and for anything that is not a row.
    """
    path = folder / ROWS
    if not path.exists():
        return []
    if not path.is_file():
        raise JournalError(f"{path} cannot be read: it is not a file")
    rows = []
    with path.open(encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip() and (row := _parse(line, f"{path} line {number}")) is not None:
                rows.append(row)
    return rows


def latest(rows: Iterable[Row]) -> list[Row]:
    """Keep the last of several rows with the same identity and round; in order of first appearance."""
    found: dict[tuple[str, int], Row] = {}
    for row in rows:
        found[row.case.digest(), row.round] = row
    return list(found.values())


def _parse(line: str, location: str) -> Row | None:
    try:
        data: Any = json.loads(line)
    except (ValueError, RecursionError):
        log.warning("%s is truncated and is skipped", location)
        return None
    schema = data.get("schema") if isinstance(data, dict) else None
    if schema != SCHEMA:
        raise JournalError(
            f"{location} has schema {show(schema)}; this version reads only schema {SCHEMA}. Nothing was changed"
        )
    try:
        return Row(**data)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise JournalError(
            f"{location} is not a row of schema {SCHEMA}: {key}: {reason_of(first)}. Nothing was changed"
        ) from error


def _write(file: int, data: bytes) -> None:
    while data:
        data = data[os.write(file, data) :]
