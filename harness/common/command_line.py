"""Helpers for the project's commands: bounded integer arguments and user errors reported in one line."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable, Iterator

from harness.common.text import LONGEST_PATH, shortened

MAX_COUNT = 2**31 - 1  # upper limit of any count given on a command line


def count(least: int = 1, most: int = MAX_COUNT) -> Callable[[str], int]:
    """Return an argparse type that accepts an integer from `least` to `most`."""

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
    """End the command with exit status 2 and a one-line message on a ValueError or OSError, which the user can fix."""
    try:
        yield
    except (ValueError, OSError) as error:
        parser.exit(2, f"{parser.prog}: {one_line(error)}\n")


def one_line(error: Exception) -> str:
    """Return an error's message on one line.

    For an OSError this is the path, shortened to a readable length, and the reason.
    """
    if not isinstance(error, OSError) or not error.strerror:
        return " ".join(str(error).split())
    return (
        error.strerror
        if error.filename is None
        else f"{shortened(str(error.filename), LONGEST_PATH)}: {error.strerror}"
    )
