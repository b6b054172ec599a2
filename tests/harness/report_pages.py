"""Reads tables back out of a report, whether HTML or Markdown, so that tests compare what a reader sees."""

from __future__ import annotations

from html.parser import HTMLParser

from markdown_it import MarkdownIt

Table = list[list[str]]


class _Reader(HTMLParser):
    """Collects the cells of every table; a small note is put in brackets, as Markdown does."""

    def __init__(self) -> None:
        super().__init__()
        self.tables: list[Table] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self._in_cell = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in {"td", "th"}:
            self.tables[-1][-1].append("")
            self._in_cell = True
        elif tag == "small" and self._in_cell:
            self._add(" (")

    def handle_endtag(self, tag: str) -> None:
        if tag == "small" and self._in_cell:
            self._add(")")
        if tag in {"td", "th"}:
            self._in_cell = False

    def handle_data(self, data: str) -> None:
        if self._in_cell:
            self._add(data)

    def _add(self, text: str) -> None:
        self.tables[-1][-1][-1] += text


def html_tables(page: str) -> list[Table]:
    """The tables of an HTML page, heading row first, as text with runs of white space made one."""
    reader = _Reader()
    reader.feed(page)
    return [[[" ".join(cell.split()) for cell in row] for row in table] for table in reader.tables]


def markdown_tables(text: str) -> list[Table]:
    """The tables of a Markdown file as a reader on a forge sees them."""
    return html_tables(MarkdownIt("commonmark").enable("table").render(text))


def elements(page: str) -> list[tuple[str, dict[str, str | None]]]:
    """Every element of a page, as tag and attributes."""
    reader = _Reader()
    reader.feed(page)
    return reader.elements


def table_with(tables: list[Table], heading: str) -> Table:
    """The first table that has a column whose heading contains the given words."""
    return next(table for table in tables if any(heading in cell for cell in table[0]))
