"""Exit handling for commands: one message on stderr, and an exit status that tells input errors from failures."""

from __future__ import annotations

import errno
import sys
from pathlib import Path

from harness.common.command_line import one_line
from harness.common.io_errors import unwritable
from harness.runner.worker import is_out_of_memory

FAILED, UNUSABLE, INTERRUPTED = 1, 2, 130
OF_PATHS = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP)  # the path itself is wrong


def end(error: BaseException, out: Path, kept: str = "") -> int:
    """Print what went wrong and, if given, what work is `kept`; returns the exit status.

    The status is 2 for unusable input and paths, 1 for a full disk, too little memory, and numbers that are not finite,
    and 130 for an interrupt. Any other error is a bug in the program and is raised again.
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
