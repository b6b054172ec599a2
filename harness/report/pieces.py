"""The format-independent pieces of a report, which both HTML and Markdown print."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from harness.report.figures.palette import Style


@dataclass(frozen=True)
class Cell:
    """One entry of a table. `sort` orders it (None last); `note` is printed small after `text`.

    `style` draws the series' line beside the text; `tone` is "", "best", "bad", "muted" or "none".
    """

    text: str
    sort: float | str | None = None
    note: str = ""
    tone: str = ""
    style: Style | None = None
    href: str = ""


NOTHING = Cell("–", tone="none")


@dataclass(frozen=True)
class Column:
    """A column's heading; numeric columns are right-aligned and sort by value."""

    title: str
    numeric: bool = True


@dataclass(frozen=True)
class Table:
    """A table with its caption; `note` says how to read it."""

    title: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]
    note: str = ""
    kind: str = field(default="table", init=False)


@dataclass(frozen=True)
class Figure:
    """Inline SVG in two widths, `wide` and `narrow` (for a phone), with the legend as HTML."""

    title: str
    wide: str
    narrow: str
    legend: Mapping[str, Style]
    note: str = ""
    kind: str = field(default="figure", init=False)


@dataclass(frozen=True)
class Span:
    """Consecutive lengths in a strip that share one answer; an empty label means that nothing qualifies."""

    label: str
    count: int
    lengths: str
    style: Style | None


@dataclass(frozen=True)
class Strip:
    """The answer as coloured bars over the lengths, one bar per tolerance; a table repeats it in numbers."""

    ticks: Sequence[str]
    bars: Mapping[str, Sequence[Span]]
    kind: str = field(default="strip", init=False)


@dataclass(frozen=True)
class Note:
    """A paragraph; `code` is printed verbatim below it."""

    text: str = ""
    code: str = ""
    kind: str = field(default="note", init=False)


Item = Table | Figure | Strip | Note


@dataclass(frozen=True)
class Group:
    """Items under one heading (empty for a chapter's only group), folded if they are secondary."""

    title: str
    items: Sequence[Item]
    folded: bool = False


@dataclass(frozen=True)
class Chapter:
    """One topic of the report; `name` is its anchor."""

    name: str
    title: str
    lead: str
    groups: Sequence[Group]


@dataclass(frozen=True)
class Headline:
    """One sentence of the answer. `tone` is "answer", "other", "warn" or "bad"."""

    text: str
    tone: str = "answer"


@dataclass(frozen=True)
class Document:
    """Everything a template prints."""

    title: str
    subtitle: str
    banner: str
    headlines: Sequence[Headline]
    strip: Strip | None
    chapters: Sequence[Chapter]
    styles: Mapping[str, Style]
