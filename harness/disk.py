"""What a command says where the disk is full or must not be written: a sentence instead of a traceback."""

from __future__ import annotations

import errno
from pathlib import Path

ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.EACCES, errno.EPERM)


def unwritable(error: OSError, folder: Path | str) -> str:
    """The sentence; `folder` is named where the error names no file. Raises the error if it is none of the disk's."""
    if error.errno not in ERRORS:
        raise error
    return f"{error.filename or folder} cannot be written: {error.strerror}"
