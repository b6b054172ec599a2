"""Turn matplotlib figures into reproducible SVG that can share one HTML page, light or dark."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

import matplotlib as mpl
import seaborn as sns
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from harness.report.figures.palette import COLOURS, stand_in

_SVG, _XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
_NOT_XML = re.compile(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_REFERENCE = re.compile(r"[\"(]#([^\")]+)")
_FONT = re.compile(r"font-family: [^;]*; ?")
# A tenth of a point is finer than a screen can show.
_COORDINATES = {"d", "x", "y"}
_DECIMALS = re.compile(r"-?\d+\.\d+")


@dataclass(frozen=True)
class Size:
    """A drawing's size in inches and points; `labelled` also writes names at the ends of lines, besides the legend."""

    width_in: float
    height_in: float
    font_pt: float
    margin_in: float
    most_ticks: int
    labelled: bool

    def width_of(self, letters: int) -> float:
        """Return the width in inches for a text of `letters` characters, in whatever font the reader has."""
        return 0.3 + 0.66 * letters * self.font_pt / 72

    def frame(self, *, right_in: float) -> tuple[float, float, float, float]:
        """Return the axes' left, bottom, right and top as shares of the drawing, with space for ticks and labels."""
        em_in = self.font_pt / 72
        right = 1 - right_in / self.width_in
        return 5.6 * em_in / self.width_in, 3.8 * em_in / self.height_in, right, 1 - 1.6 * em_in / self.height_in


SIZES = {
    "wide": Size(10.0, 5.0, 9.5, 0.15, most_ticks=14, labelled=True),
    "narrow": Size(3.7, 4.0, 8.5, 0.15, most_ticks=6, labelled=False),
}


def drawable(text: str) -> str:
    """Replace characters that XML cannot hold."""
    return _NOT_XML.sub("\ufffd", text)


@contextmanager
def canvas(width_in: float, height_in: float, font_pt: float) -> Iterator[Figure]:
    """Yield a figure in the report's style, without any pyplot state."""
    ink, muted, rule = stand_in("ink"), stand_in("muted"), stand_in("rule")
    look: dict[Any, Any] = {
        **sns.axes_style("ticks"),
        "svg.fonttype": "none",
        "svg.hashsalt": "report",
        "font.size": font_pt,
        "axes.titlesize": font_pt,
        "axes.labelsize": font_pt,
        "xtick.labelsize": font_pt,
        "ytick.labelsize": font_pt,
        "axes.edgecolor": rule,
        "axes.labelcolor": muted,
        "text.color": ink,
        "xtick.color": rule,
        "ytick.color": rule,
        "xtick.labelcolor": muted,
        "ytick.labelcolor": muted,
        "grid.color": rule,
        "figure.facecolor": "none",
        "axes.facecolor": "none",
        "text.parse_math": False,
    }
    with mpl.rc_context(look):
        figure = Figure(figsize=(width_in, height_in))
        FigureCanvasSVG(figure)
        yield figure


def to_svg(figure: Figure, name: str, description: str) -> str:
    """Return the figure as an `<svg>` element with ids prefixed by `name` and colours as CSS variables.

    It has no size of its own, so CSS decides. Call it inside `canvas`, whose settings control how text and ids are
    written.
    """
    buffer = io.StringIO()
    nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # the reader's fonts draw the text
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    ElementTree.register_namespace("", _SVG)
    ElementTree.register_namespace("xlink", _XLINK)
    root = ElementTree.fromstring(buffer.getvalue())
    for unwanted in ("width", "height", "version"):
        root.attrib.pop(unwanted, None)
    used = set(_REFERENCE.findall(buffer.getvalue()))
    for element in root.iter():
        _adapt(element, name, used)
    root.attrib |= {"role": "img", "aria-label": drawable(description)}
    return ElementTree.tostring(root, encoding="unicode")


def _adapt(element: ElementTree.Element, name: str, used: set[str]) -> None:
    """Make ids unique to `name` and colours variable, and leave what is the same everywhere to the page's CSS."""
    element.text = (element.text or "").strip() if element.tag != f"{{{_SVG}}}style" else ""
    element.tail = ""
    for attribute, value in list(element.attrib.items()):
        if (attribute == "id" and value not in used) or value.startswith("rotate(-0 "):
            del element.attrib[attribute]
        elif attribute == "id":
            element.set(attribute, f"{name}-{value}")
        elif attribute in _COORDINATES:
            element.set(attribute, _DECIMALS.sub(lambda number: f"{float(number[0]):.1f}", value))
        else:
            element.set(attribute, _restyled(value, name))


def _restyled(value: str, name: str) -> str:
    value = _FONT.sub("", value.replace("url(#", f"url(#{name}-"))
    value = f"#{name}-{value[1:]}" if value.startswith("#") else value
    for colour in COLOURS:
        value = value.replace(stand_in(colour), f"var(--{colour})")
    return value
