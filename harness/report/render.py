"""Write a run's report: one self-contained HTML page, and the same tables as Markdown."""

from __future__ import annotations

import base64
import hashlib
import re
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from harness.common.atomic_write import write_whole
from harness.report.document import build_document
from harness.report.figures.keys import key, symbols
from harness.report.figures.palette import COLOURS
from harness.report.figures.svg import drawable
from harness.report.pieces import Figure
from harness.results.rows_file import latest, read_rows
from harness.results.run_file import read_facts
from harness.stats.analysis import Analysis

if TYPE_CHECKING:
    from harness.report.pieces import Document

_MARKDOWN_SPECIAL = re.compile(r"[\\`*\[\]<>|#~&\r\n]|(?<![^\W_])_|_(?![^\W_])")
_MARKDOWN_ENTITIES = {"<": "&lt;", ">": "&gt;", "&": "&amp;", "\r": " ", "\n": " "}


def write_report(folder: Path, analysis: Analysis | None = None) -> tuple[Path, Path]:
    """Write `report.html` and `report.md` into `folder` from its `rows.jsonl` and `run.json`, and nothing else.

    Without an `analysis`, the rows are read. Returns the paths. Raises ValueError if one of the inputs is missing or
    unreadable.
    """
    facts = read_facts(folder)
    return write_document(folder, build_document(analysis or Analysis(latest(read_rows(folder))), facts))


def write_document(folder: Path, document: Document) -> tuple[Path, Path]:
    """Write a report that is already built; returns the paths of the HTML and of the Markdown."""
    html, markdown = folder / "report.html", folder / "report.md"
    write_whole(html, render_html(document))
    write_whole(markdown, render_markdown(document))
    return html, markdown


def write_picture(path: Path, document: Document) -> None:
    """Write the report's first figure, time against length, as an SVG file of its own.

    Raises ValueError if no time was measured, OSError if the file cannot be written.
    """
    items = [item for chapter in document.chapters for group in chapter.groups for item in group.items]
    figure = next((item for item in items if isinstance(item, Figure)), None)
    if figure is None:
        raise ValueError("no time was measured, so there is no figure")
    write_whole(path, _standalone(figure.wide))


def _standalone(svg: str) -> str:
    """An SVG element as a file: with the colours and fonts that the page gives it otherwise."""
    light, dark = ("".join(f"--{name}:{pair[side]};" for name, pair in COLOURS.items()) for side in (0, 1))
    look = "background:var(--surface);font-family:system-ui,sans-serif;stroke-linejoin:round"
    style = f"<style>svg{{{light}{look}}}@media(prefers-color-scheme:dark){{svg{{{dark}}}}}</style>"
    return svg.replace(">", f">{style}", 1) + "\n"


def render_html(document: Document) -> str:
    """Render the document as one page without external references; only its own script may run."""
    templates = _environment(escape=True)
    script = _source(templates, "report.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    page = templates.get_template("report.html").render(
        document=document,
        colours=COLOURS,
        style=Markup(_source(templates, "report.css")),
        script=Markup(script),
        script_hash=digest,
        svg=Markup,  # generated here from numbers and escaped labels
        key=key,
        symbols=symbols,
    )
    return drawable(page)


def render_markdown(document: Document) -> str:
    """Render the document's sentences and tables as GitHub-flavoured Markdown; figures appear only in the HTML."""
    templates = _environment(escape=False)
    templates.filters["plain"] = _escape_markdown
    templates.filters["indented"] = lambda text: textwrap.indent(text.rstrip(), "    ")
    text = templates.get_template("report.md").render(document=document)
    return drawable(text.rstrip()) + "\n"


def _environment(*, escape: bool) -> Environment:
    return Environment(
        loader=PackageLoader("harness.report", ""),
        autoescape=escape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def _source(templates: Environment, name: str) -> str:
    assert templates.loader is not None
    return templates.loader.get_source(templates, name)[0]


def _escape_markdown(text: str) -> str:
    """Escape text for Markdown, on one line; underscores inside words need no escape."""
    return _MARKDOWN_SPECIAL.sub(_escaped, text)


def _escaped(found: re.Match[str]) -> str:
    letter = found[0]
    return _MARKDOWN_ENTITIES.get(letter) or f"\\{letter}"
