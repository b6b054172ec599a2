"""What the project's commands share: numbers within limits, and how a user's mistake ends one."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable, Iterator

MOST = 2**31 - 1  # of anything counted on a command line


def count(least: int = 1, most: int = MOST) -> Callable[[str], int]:
    """An argparse type: an integer from `least` to `most`."""

    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"{text[:50]!r} is not an integer from {least} to {most}")
        return value

    return read


@contextlib.contextmanager
def mistakes_in_words(parser: argparse.ArgumentParser) -> Iterator[None]:
    """End the command with exit status 2 and one line for what its user can mend: a ValueError or an OSError."""
    try:
        yield
    except (ValueError, OSError) as error:
        said = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and error.strerror else str(error)
        parser.exit(2, f"{parser.prog}: {' '.join(said.split())}\n")
