"""Draw the small line-and-marker keys next to a series' name in legends and tables."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
from markupsafe import Markup
from matplotlib.markers import MarkerStyle

if TYPE_CHECKING:
    from harness.report.figures.palette import Style

_DASHES = {"solid": "none", "dashed": "5 3", "dotted": "1.5 2.5", "dashdot": "7 2.5 1.5 2.5"}
_WIDTH, _HEIGHT, _RADIUS = 26, 10, 4


def key_name(style: Style) -> str:
    """Return the id of a style's symbol, made of letters, digits and dashes only."""
    return f"key-{style.colour}-{style.line}-{ord(style.marker)}"


def symbols(styles: Iterable[Style]) -> Markup:
    """Return one hidden `<symbol>` per distinct style, for reference by `key`."""
    by_name = {key_name(style): style for style in styles}
    return Markup("").join(_symbol(name, style) for name, style in by_name.items())


def key(style: Style) -> Markup:
    """Return an inline picture of the style's line and marker."""
    return Markup('<svg class="key" aria-hidden="true"><use href="#{}"/></svg>').format(key_name(style))


def _symbol(name: str, style: Style) -> Markup:
    return Markup(
        '<symbol id="{name}" viewBox="0 0 {width} {height}">'
        '<line x1="0" y1="{middle}" x2="{width}" y2="{middle}" stroke="var(--{colour})" stroke-width="{stroke}" '
        'stroke-dasharray="{dashes}"/><path d="{marker}" fill="var(--{colour})" stroke="var(--surface)" '
        'stroke-width="0.8"/></symbol>'
    ).format(
        name=name,
        width=_WIDTH,
        height=_HEIGHT,
        middle=_HEIGHT / 2,
        colour=style.colour,
        stroke=style.width,
        dashes=_DASHES[style.line],
        marker=_outline(style.marker),
    )


def _outline(marker: str) -> str:
    """Return matplotlib's marker as an SVG path in the middle of the key."""
    shape = MarkerStyle(marker)
    path = shape.get_path().transformed(shape.get_transform())
    reach = np.abs(np.asarray(path.vertices)).max() / _RADIUS
    polygons = path.to_polygons()
    return " ".join(f"M{_corners(polygon / reach)}Z" for polygon in polygons)


def _corners(polygon: Iterable[tuple[float, float]]) -> str:
    return "L".join(f"{_WIDTH / 2 + x:.1f} {_HEIGHT / 2 - y:.1f}" for x, y in polygon)
