"""Real text as bytes, without a download: the source of the Python standard library, or any file.

Synthetic tokens make attention either uniform or trivially sparse; with text it is as uneven as in practice.
"""

from __future__ import annotations

import hashlib
import os
import platform
import sysconfig
from functools import cached_property
from pathlib import Path

import torch
from jaxtyping import UInt8
from torch import Tensor

# Installed packages and test suites differ between installations of one Python version.
SKIPPED_FOLDERS = frozenset({"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"})

GOLDEN = 0x9E3779B97F4A7C15  # 2**64 divided by the golden ratio


class TextBytes:
    """A text as bytes, from which disjoint ranges can be taken.

    `path` is any readable file; None is the Python standard library's `*.py` files, concatenated in the order of the
    SHA-256 of their names, so that neighbours are unrelated and the order is the same on every machine. Files are read
    when first needed. `origin` describes the text.

    Raises ValueError for a file that cannot be read or is empty.
    """

    def __init__(self, path: str | os.PathLike[str] | None = None) -> None:
        self.path = None if path is None else Path(path)
        self.origin = f"Python {platform.python_version()} standard library" if path is None else str(path)

    def __len__(self) -> int:
        """Number of bytes."""
        return len(self._bytes)

    def tokens(self, count: int, *, seed: int = 0, start: int = 0) -> UInt8[Tensor, " count"]:
        """Return `count` bytes, `start` bytes after the seed's position in the text, which is read as a ring.

        Two ranges of one seed are disjoint if their ranges from `start` are. The positions of seeds are golden-ratio
        steps apart: those of seeds 0 to S-1 are at least len / (2.5·S) from each other, so ranges up to that length are
        also disjoint between those seeds.

        Raises ValueError if the text has fewer than start + count bytes.
        """
        if min(count, start, seed) < 0:
            raise ValueError(f"count={count}, start={start}, seed={seed} are not allowed: none may be negative")
        if start + count > len(self):
            raise ValueError(f"{self.origin} is too short: it has {len(self)} bytes, but {start + count} are needed")
        begin = (((seed * GOLDEN) % 2**64) * len(self) >> 64) + start
        indices = torch.arange(begin, begin + count).remainder_(len(self))
        return self._bytes[indices]

    @cached_property
    def _bytes(self) -> UInt8[Tensor, " size"]:
        content = _standard_library() if self.path is None else _file(self.path)
        if not content:
            raise ValueError(f"{self.origin} holds no text: {self.path or sysconfig.get_path('stdlib')} has no bytes")
        return torch.frombuffer(bytearray(content), dtype=torch.uint8)


def _file(path: Path) -> bytes:
    try:
        if path.exists() and not (path.is_file() or path.is_dir()):  # a pipe or a device may be endless
            raise ValueError(f"text file {str(path)!r} cannot be read: it is not a regular file")
        return path.read_bytes()
    except OSError as error:
        raise ValueError(f"text file {str(path)!r} cannot be read: {error.strerror}") from error


def _standard_library() -> bytes:
    root = Path(sysconfig.get_path("stdlib"))
    files = []
    for folder, below, names in os.walk(root):
        below[:] = [name for name in below if name not in SKIPPED_FOLDERS]  # prunes os.walk
        files += [Path(folder, name) for name in names if name.endswith(".py")]
    files.sort(key=lambda file: hashlib.sha256(file.relative_to(root).as_posix().encode()).digest())
    return b"".join(file.read_bytes() for file in files)
