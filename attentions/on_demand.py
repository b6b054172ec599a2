"""Public names of a package that are imported when they are first asked for."""

from __future__ import annotations

import importlib.util
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
        if name in homes:
            found = getattr(importlib.import_module(f"{package}.{homes[name]}"), name)
            setattr(sys.modules[package], name, found)
            return found
        if not name.startswith("_") and importlib.util.find_spec(f"{package}.{name}"):
            return importlib.import_module(f"{package}.{name}")  # as if the package had imported its modules itself
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    setattr(sys.modules[package], "__dir__", lambda: sorted({*vars(sys.modules[package]), *homes}))  # noqa: B010
    return find
