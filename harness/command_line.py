"""What the project's commands share: numbers within limits, and how a user's mistake ends one."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable, Iterator

from harness.config_source import LONGEST_PATH, shortened

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
        parser.exit(2, f"{parser.prog}: {one_line(error)}\n")


def one_line(error: Exception) -> str:
    """An error's message in one line: of an OSError the path, cut to a readable length, and the reason."""
    if not isinstance(error, OSError) or not error.strerror:
        return " ".join(str(error).split())
    return (
        error.strerror
        if error.filename is None
        else f"{shortened(str(error.filename), LONGEST_PATH)}: {error.strerror}"
    )
