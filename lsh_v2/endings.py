"""How a command ends that cannot go on: one message on stderr, and an exit status that says whose fault it was."""

from __future__ import annotations

import errno
import sys
from pathlib import Path

from harness.command_line import one_line
from harness.disk import unwritable
from harness.worker import is_out_of_memory

FAILED, UNUSABLE, INTERRUPTED = 1, 2, 130
OF_PATHS = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP)  # a name that cannot be right


def end(error: BaseException, out: Path, kept: str = "") -> int:
    """Say what went wrong, and what is `kept` of the work; returns the exit status.

    2 for input and paths that cannot be used, 1 for a full disk, too little memory and numbers that are not finite,
    130 for an interrupt. Raises the error if it is none of these: then it is the program's own.
    """
    behind = f"; {kept}" if kept else ""
    if isinstance(error, KeyboardInterrupt):
        return _say(f"interrupted{behind}", INTERRUPTED)
    if is_out_of_memory(error):
        (reason, *_) = str(error).splitlines() or [""]
        return _say(f"there is not enough memory: {reason or type(error).__name__}{behind}", FAILED)
    if isinstance(error, OSError):
        if error.errno in OF_PATHS:
            return _say(f"{one_line(error)}{behind}", UNUSABLE)
        return _say(f"{unwritable(error, out)}{behind}", FAILED)
    if isinstance(error, FloatingPointError):
        return _say(error, FAILED)
    if isinstance(error, ValueError):
        return _say(error, UNUSABLE)
    raise error


def _say(message: object, status: int) -> int:
    print(message, file=sys.stderr)
    return status
