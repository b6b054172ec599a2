"""Things outside the project, named `package.module:Name`, and what a mistyped name may have meant."""

from __future__ import annotations

import difflib
import importlib
import re
from collections.abc import Iterable

PATH = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")


def is_path(name: str) -> bool:
    """Whether a name has the form `package.module:Name`."""
    return PATH.fullmatch(name) is not None


def import_path(path: str) -> object:
    """What `package.module:Name` names.

    Raises ValueError for another form, a module that cannot be imported, for whatever reason, and a name that it does
    not have.
    """
    if not is_path(path):
        raise ValueError(f"{path!r} is not allowed: it must have the form package.module:Name")
    module, _, name = path.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{path!r} cannot be imported: {error}") from error
    except (Exception, SystemExit) as error:  # a module of the user's runs here
        raise ValueError(f"{path!r} cannot be imported: {type(error).__name__}: {error}") from error


def nearest(name: str, known: Iterable[str]) -> str:
    """The known names most like `name`, as words to put into a message; empty when none is near."""
    near = difflib.get_close_matches(name, list(known), n=3)
    return f"did you mean {' or '.join(near)}? " if near else ""
