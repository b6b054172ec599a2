"""Attentions behind one interface. `BACKENDS` maps names to classes; `build` makes one from a name.

Adding a backend is one new file and one line in `BACKENDS` of `attentions.registry`; one outside the project is named
`package.module:Class` wherever a name is expected.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from attentions.on_demand import on_demand as _on_demand

if TYPE_CHECKING:
    from attentions.base import Attention, Cost, Problem, Stream
    from attentions.registry import BACKENDS, build, resolve, settings_of

__all__ = ["BACKENDS", "Attention", "Cost", "Problem", "Stream", "build", "resolve", "settings_of"]
__getattr__ = _on_demand(
    "attentions",
    base=("Attention", "Cost", "Problem", "Stream"),
    registry=("BACKENDS", "build", "resolve", "settings_of"),
)
