"""Turn disk errors (disk full, no write permission) into a one-sentence message instead of a traceback."""

from __future__ import annotations

import errno
from pathlib import Path

ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.EACCES, errno.EPERM)


def unwritable(error: OSError, folder: Path | str) -> str:
    """Return the message, naming `folder` if the error has no file name.

    Re-raises the error if it is not a disk error.
    """
    if error.errno not in ERRORS:
        raise error
    return f"{error.filename or folder} cannot be written: {error.strerror}"
