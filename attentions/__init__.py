"""Attentions behind one interface. `BACKENDS` maps names to classes; `build` makes one from a name.

Adding a backend is one new file and one line in `BACKENDS` of `attentions.registry`; one outside the project is named
`package.module:Class` wherever a name is expected.
"""

from __future__ import annotations

import pkgutil as _pkgutil
from typing import TYPE_CHECKING

import lazy_loader as _lazy

if TYPE_CHECKING:
    from attentions.base import Attention, Cost, Problem, Stream
    from attentions.registry import BACKENDS, build, resolve, settings_of

__all__ = ["BACKENDS", "Attention", "Cost", "Problem", "Stream", "build", "resolve", "settings_of"]
__getattr__, __dir__, _ = _lazy.attach(
    __name__,
    {module.name for module in _pkgutil.iter_modules(__path__)},
    {
        "base": ["Attention", "Cost", "Problem", "Stream"],
        "registry": ["BACKENDS", "build", "resolve", "settings_of"],
    },
)
