"""Reports on a finished or unfinished run: HTML for people, Markdown with the same tables, both from its rows alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attentions.on_demand import on_demand

if TYPE_CHECKING:
    from harness.report.render import write_report

__all__ = ["write_report"]
__getattr__ = on_demand("harness.report", render=("write_report",))
