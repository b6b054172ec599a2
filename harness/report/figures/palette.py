"""Choose the look of each series: exact methods in ink, approximations in colour, controls grey and dashed.

The hues are those of Okabe and Ito, which colour-blind readers can distinguish, with lighter variants for dark pages.
Figures are drawn in stand-in colours that `harness.report.figures.svg` replaces with CSS variables, so that one SVG
serves light and dark pages.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

# name -> (light page, dark page)
COLOURS: dict[str, tuple[str, str]] = {
    "ink": ("#1c2024", "#eceef0"),
    "muted": ("#5f666d", "#a3abb3"),
    "rule": ("#dfe3e6", "#30363b"),
    "surface": ("#ffffff", "#15181b"),
    "exact0": ("#1c2024", "#f2f4f5"),
    "exact1": ("#7a5c3e", "#d0b08c"),
    "exact2": ("#4b5b6e", "#b4c2d2"),
    "hue0": ("#0072b2", "#56a8e0"),
    "hue1": ("#d55e00", "#f2854a"),
    "hue2": ("#00835f", "#2fc39a"),
    "hue3": ("#b0528a", "#e08cbc"),
    "hue4": ("#a87400", "#e6b13c"),
    "hue5": ("#5b4db5", "#a598f0"),
    "control0": ("#878d94", "#8b939b"),
    "control1": ("#97867a", "#94857a"),
}
_EXACT = ("exact0", "exact1", "exact2")
_HUES = ("hue0", "hue1", "hue2", "hue3", "hue4", "hue5")
_CONTROLS = ("control0", "control1")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p", "h", "<", ">", "d")


@dataclass(frozen=True)
class Style:
    """Colour name, line ("solid", "dashed", "dotted", "dashdot"), matplotlib marker and width in points."""

    colour: str
    line: str
    marker: str
    width: float


def stand_in(name: str) -> str:
    """Return the colour a figure is drawn in: different from every real one, and unique to `name`."""
    return f"#01{list(COLOURS).index(name):02x}fe"


def assign(labels: Sequence[str], exact: Sequence[str], controls: Sequence[str]) -> dict[str, Style]:
    """Return a style for each label, by kind and order of appearance; no two share colour, line and marker."""
    styles: dict[str, Style] = {}
    places = {"exact": 0, "control": 0, "approximate": 0}
    for label in labels:
        kind = "control" if label in controls else "exact" if label in exact else "approximate"
        styles[label] = _style(kind, places[kind])
        places[kind] += 1
    return styles


def _style(kind: str, place: int) -> Style:
    if kind == "control":
        line = ("dashed", "dotted")[place % 2]
        return Style(_CONTROLS[place % len(_CONTROLS)], line, _MARKERS[-1 - place % len(_MARKERS)], 1.3)
    marker = _MARKERS[place % len(_MARKERS)]
    if kind == "exact":
        return Style(_EXACT[place % len(_EXACT)], "solid", marker, 2.2)
    line = ("solid", "dashdot")[place // len(_HUES) % 2]
    return Style(_HUES[place % len(_HUES)], line, marker, 1.7)
