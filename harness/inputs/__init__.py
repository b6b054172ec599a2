"""The inputs that attention is measured on. README.md in this folder describes each kind, with figures.

`python -m harness.inputs` measures those figures again.
"""

from __future__ import annotations

import pkgutil as _pkgutil
from typing import TYPE_CHECKING

import lazy_loader as _lazy

if TYPE_CHECKING:
    from harness.inputs.base import CALIBRATION, Inputs
    from harness.inputs.diagnostics import Unevenness, diagnose
    from harness.inputs.make import KINDS, identity, make_hidden, make_inputs, why_not

__all__ = [
    "CALIBRATION",
    "KINDS",
    "Inputs",
    "Unevenness",
    "diagnose",
    "identity",
    "make_hidden",
    "make_inputs",
    "why_not",
]
__getattr__, __dir__, _ = _lazy.attach(
    __name__,
    {module.name for module in _pkgutil.iter_modules(__path__)},
    {
        "base": ["CALIBRATION", "Inputs"],
        "diagnostics": ["Unevenness", "diagnose"],
        "make": ["KINDS", "identity", "make_hidden", "make_inputs", "why_not"],
    },
)
