"""Write the report of a finished or unfinished run, as HTML and as Markdown with the same tables, from its rows."""

from __future__ import annotations

import pkgutil as _pkgutil
from typing import TYPE_CHECKING

import lazy_loader as _lazy

if TYPE_CHECKING:
    from harness.report.render import write_report

__all__ = ["write_report"]
__getattr__, __dir__, _ = _lazy.attach(
    __name__,
    {module.name for module in _pkgutil.iter_modules(__path__)},
    {
        "render": ["write_report"],
    },
)
