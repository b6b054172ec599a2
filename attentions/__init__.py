"""Attentions behind one interface. `BACKENDS` maps names to classes; `build` creates one from a name.

To add a backend, add one file and one line in `BACKENDS` of `attentions.registry`. A backend outside the project is
written `package.module:Class` wherever a name is expected.
"""

from __future__ import annotations

import pkgutil as _pkgutil
from typing import TYPE_CHECKING

import lazy_loader as _lazy

if TYPE_CHECKING:
    from attentions.base import Attention
    from attentions.common.problem import Cost, Problem
    from attentions.common.stream import Stream
    from attentions.registry import BACKENDS, build, resolve, settings_of

__all__ = ["BACKENDS", "Attention", "Cost", "Problem", "Stream", "build", "resolve", "settings_of"]
__getattr__, __dir__, _ = _lazy.attach(
    __name__,
    {module.name for module in _pkgutil.iter_modules(__path__)},
    {
        "base": ["Attention"],
        "common.problem": ["Cost", "Problem"],
        "common.stream": ["Stream"],
        "registry": ["BACKENDS", "build", "resolve", "settings_of"],
    },
)
