"""What several commands do with files: hash them, hold a folder for themselves, read what they wrote earlier."""

from __future__ import annotations

import fcntl
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lsh_v2.schemas import Schema, parse


class InUseError(ValueError):
    """A folder in which another process is at work."""


def digest(path: Path, pattern: str = "*") -> str:
    """SHA-256 of a file, or of the files below a folder whose names match, with these; empty where there is neither."""
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
def alone(folder: Path, what: str) -> Iterator[None]:
    """Hold a folder until the block or the process ends. Raises InUseError where another process holds it.

    `what` is a noun for both: "pipeline" or "training".
    """
    with (folder / f".{what}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InUseError(f"{folder} is in use by another {what}") from error
        yield


def read_object(path: Path, kind: type[Schema]) -> Schema | None:
    """What a file holds, None where there is no file.

    Raises ValueError, naming the file and with what to do, for one that cannot be read and for what is no such object.
    """
    try:
        return parse(path.read_bytes(), kind)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ValueError(f"{path} cannot be read: {reason}; {REMEDY}") from error


REMEDY = "remove it, and the same command makes it again"
