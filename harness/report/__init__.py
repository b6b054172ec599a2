"""Reports on a finished or unfinished run: HTML for people, Markdown with the same tables, both from its rows alone."""

from harness.report.render import write_report

__all__ = ["write_report"]
