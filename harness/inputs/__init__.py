"""What attention is measured on. README.md in this folder describes each kind, with figures.

`python -m harness.inputs` measures those figures again.
"""

from __future__ import annotations

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
