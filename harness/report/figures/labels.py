"""Write series names at the ends of lines, moved apart where they would overlap."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes

from harness.report.figures.palette import Style, stand_in
from harness.report.figures.svg import drawable

_LINE = 1.22
_OFFSET_PT = 8
_POINTS_PER_INCH = 72


@dataclass(frozen=True)
class End:
    """The end of a line in data coordinates, and the text to write there."""

    x: float
    y: float
    text: str
    style: Style


def label_ends(axes: Axes, ends: Sequence[End], font_pt: float) -> None:
    """Write each end's text beside it: right of the axes at the last length, above and to the left elsewhere.

    Texts at the same x are at least one line apart. Axis limits and margins must be final.
    """
    right = max((end.x for end in ends), default=0.0)
    dots_a_point = axes.get_figure(root=True).dpi / _POINTS_PER_INCH  # pyright: ignore[reportOptionalMemberAccess]
    for x in sorted({end.x for end in ends}):
        here = [end for end in ends if end.x == x]
        lift = 0.0 if x == right else font_pt
        heights = [float(axes.transData.transform((x, end.y))[1]) / dots_a_point for end in here]
        for end, height, spread in zip(here, heights, spread_out(heights, _LINE * font_pt), strict=True):
            _annotate(axes, end, spread - height + lift, before=x != right)


def spread_out(heights: Sequence[float], gap: float) -> list[float]:
    """Move heights by merging clusters in one pass until neighbours are `gap` apart, keeping their order."""
    order = sorted(range(len(heights)), key=lambda place: heights[place])
    clusters: list[list[int]] = []
    centres: list[float] = []
    for place in order:
        clusters.append([place])
        centres.append(heights[place])
        while len(clusters) > 1 and centres[-1] - centres[-2] < gap * (len(clusters[-1]) + len(clusters[-2])) / 2:
            last = clusters.pop()
            centres.pop()
            clusters[-1] += last
            centres[-1] = sum(heights[member] for member in clusters[-1]) / len(clusters[-1])
    spread = [0.0] * len(heights)
    for cluster, centre in zip(clusters, centres, strict=True):
        for step, member in enumerate(cluster):
            spread[member] = centre + gap * (step - (len(cluster) - 1) / 2)
    return spread


def _annotate(axes: Axes, end: End, rise_pt: float, *, before: bool) -> None:
    colour = stand_in(end.style.colour)
    line = {
        "arrowstyle": "-",
        "color": colour,
        "lw": 0.6,
        "shrinkA": 0,
        "shrinkB": 3,
        "relpos": (1 if before else 0, 0.5),
    }
    axes.annotate(
        drawable(end.text),
        (end.x, end.y),
        xytext=(-_OFFSET_PT if before else _OFFSET_PT, rise_pt),
        textcoords="offset points",
        color=colour,
        ha="right" if before else "left",
        va="center",
        annotation_clip=False,
        zorder=10,
        arrowprops=line,
    )
