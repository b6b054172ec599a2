"""File helpers shared by several commands: hashing, locking a folder, and reading files written earlier."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from lsh_v2.common.schemas import Schema, parse


class InUseError(ValueError):
    """The folder is in use by another process."""


def digest(path: Path, pattern: str = "*") -> str:
    """SHA-256 of a file, or of a folder's matching files and their names; empty if the path does not exist."""
    if path.is_dir():
        whole = hashlib.sha256()
        for file in sorted(file for file in path.rglob(pattern) if file.is_file()):
            whole.update(f"{file.relative_to(path).as_posix()}\0{digest(file)}\0".encode())
        return whole.hexdigest()
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def locked(folder: Path, what: str) -> Iterator[None]:
    """Lock a folder until the block or the process ends. Raises InUseError if another process holds the lock.

    `what` names the lock file and appears in the message: "pipeline" or "training".
    """
    try:
        held = FileLock(folder / f".{what}.lock", timeout=0).acquire()
    except Timeout as error:
        raise InUseError(f"{folder} is in use by another {what}") from error
    with held:
        yield


def read_object(path: Path, kind: type[Schema]) -> Schema | None:
    """Read an object from a file; None if the file does not exist.

    Raises ValueError, with the path and a remedy, if the file cannot be read or does not match the schema.
    """
    try:
        return parse(path.read_bytes(), kind)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ValueError(f"{path} cannot be read: {reason}; {REMEDY}") from error


REMEDY = "remove it, and the same command creates it again"
