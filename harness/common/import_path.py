"""Import objects by a path of the form `package.module:Name`, and suggest corrections for mistyped names."""

from __future__ import annotations

import difflib
import importlib
import re
from collections.abc import Iterable

PATH = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")


def is_path(name: str) -> bool:
    """Return whether a name has the form `package.module:Name`."""
    return PATH.fullmatch(name) is not None


def import_path(path: str) -> object:
    """Import the object at `package.module:Name`.

    Raises ValueError if the path has another form, if the module cannot be imported for any reason, or if the module
    has no such name.
    """
    if not is_path(path):
        raise ValueError(f"{path!r} is not allowed: it must have the form package.module:Name")
    module, _, name = path.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{path!r} cannot be imported: {error}") from error
    except (Exception, SystemExit) as error:  # importing a user's module may raise anything
        raise ValueError(f"{path!r} cannot be imported: {type(error).__name__}: {error}") from error


def nearest(name: str, known: Iterable[str]) -> str:
    """Return a "did you mean ...?" phrase with the known names closest to `name`, or "" if none is close."""
    near = difflib.get_close_matches(name, list(known), n=3)
    return f"did you mean {' or '.join(near)}? " if near else ""
