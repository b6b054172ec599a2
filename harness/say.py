"""Printing that never fails: rows and the report count, not who still listens."""

from __future__ import annotations

import os
from typing import TextIO


def say(text: str, stream: TextIO) -> None:
    """Print a line at once; once nobody reads a stream any more, or its disk is full, the rest of it goes nowhere."""
    try:
        print(text, file=stream, flush=True)
    except OSError:  # as with `| head`, and with `| tee log` when Ctrl-C ends tee first
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
