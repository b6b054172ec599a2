"""Print without failing: a closed pipe or a full disk must not stop a sweep or a report."""

from __future__ import annotations

import os
from typing import TextIO


def say(text: str, stream: TextIO) -> None:
    """Print a line and flush it; if the stream is closed or its disk is full, send the rest to the null device."""
    try:
        print(text, file=stream, flush=True)
    except OSError:  # as with `| head`, or `| tee log` when Ctrl-C ends tee first
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
