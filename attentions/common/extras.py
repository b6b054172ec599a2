"""Optional dependencies, and the error message when one is missing."""

from __future__ import annotations

import importlib.util
import sys
from types import TracebackType


class MissingExtraError(ImportError):
    """A package of one of the project's extras is not installed; the message says how to install it."""


def missing_extra(extra: str, error: ImportError) -> MissingExtraError:
    """Return the exception to raise from `error`, the failed import of a package that `extra` in pyproject.toml lists.

    If uncaught, it ends the program with only its message: a user needs the command, not the import chain.
    """
    if sys.excepthook is not _print_message_alone:
        global _previous
        _previous, sys.excepthook = sys.excepthook, _print_message_alone
    package = (error.name or str(error)).partition(".")[0]
    return MissingExtraError(
        f"{package} is not installed; run `pip install 'attention-bench[{extra}]'`, or in a checkout "
        f"`pip install -e '.[{extra}]'`",
        name=error.name,
    )


def require_installed(package: str, extra: str) -> None:
    """Raise MissingExtraError unless this package of `extra` is installed; checked without importing it."""
    if importlib.util.find_spec(package) is None:
        raise missing_extra(extra, ModuleNotFoundError(name=package))


_previous = sys.excepthook


def _print_message_alone(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if isinstance(error, MissingExtraError):
        print(error, file=sys.stderr)
    else:
        _previous(kind, error, trace)
