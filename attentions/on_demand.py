"""Public names of a package that are imported when they are first asked for."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from typing import Any


def on_demand(package: str, **names: tuple[str, ...]) -> Callable[[str], Any]:
    """The package's `__getattr__` (PEP 562), from the names that each of its modules gives it.

    `python -m package.command` runs the package's `__init__` before the command's own first line, which is to be
    reached at once: see `attentions.stopping`. A name must not be that of a module of the package as well.
    """
    homes = {name: module for module, given in names.items() for name in given}

    def find(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        found = getattr(importlib.import_module(f"{package}.{homes[name]}"), name)
        setattr(sys.modules[package], name, found)
        return found

    return find
