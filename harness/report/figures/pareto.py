"""Plot error against time at a few lengths, to show what a small error buys and where a control buys as much."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from harness.report import units
from harness.report.figures.length import MOST_DRAWN
from harness.report.figures.palette import Style, stand_in
from harness.report.figures.svg import canvas, to_svg
from harness.report.pieces import Figure
from harness.report.tables.answer import ANY, EXACT, TOLERANCES, exact_time_s

if TYPE_CHECKING:
    from harness.report.sections import Curve, ReportSection

_PANELS = 3
_PANEL_IN = {"wide": (3.35, 3.5, 9.5), "narrow": (3.7, 2.9, 8.5)}
_EXACT_AT = 2e-3
_TICKS = (_EXACT_AT, *(tolerance for tolerance in TOLERANCES if EXACT < tolerance < ANY), 1.0)
_FEW_DECADES = 30


@dataclass(frozen=True)
class Point:
    """One curve at one length; smaller errors are drawn at `_EXACT_AT`."""

    curve: Curve
    time_s: float
    error: float


def pareto_figure(section: ReportSection, styles: Mapping[str, Style], name: str) -> Figure | None:
    """Plot error against time at up to three lengths; None if there is no approximate method to compare."""
    points = {n: found for n in _lengths(section) if len(found := _points(section, n)) > 1}
    if not any(not point.curve.facts.exact for found in points.values() for point in found):
        return None
    ns = _chosen(list(points))
    most = max(len(points[n]) for n in ns)
    scope = f" on {section.title}" if section.title else ""
    description = f"Error against time{scope} at {units.lengths(ns)}"
    chosen = {n: _drawn(points[n]) for n in ns}
    drawings = {size: _drawing(chosen, styles, size, f"{name}-{size}", description) for size in _PANEL_IN}
    shown = {point.curve.label for found in chosen.values() for point in found}
    legend = {curve.label: styles[curve.label] for curve in section.curves if curve.label in shown}
    note = "Lower left is better; hollow markers are controls. The line joins the Pareto-optimal methods."
    if most > MOST_DRAWN:
        note += f" {MOST_DRAWN} of up to {most} methods are shown: those on the line and the fastest."
    return Figure("Error against time", drawings["wide"], drawings["narrow"], legend, note)


def _lengths(section: ReportSection) -> list[int]:
    """Return the lengths at which an exact method finished; all lengths if none ever did."""
    return [n for n in section.lengths if exact_time_s(section, n) is not None] or section.lengths


def _points(section: ReportSection, n: int) -> list[Point]:
    found = []
    for curve in section.curves:
        error = 0.0 if curve.facts.exact else curve.values("error").get(n)
        if n in curve.timings and error is not None:
            found.append(Point(curve, curve.timings[n].time_s, max(error, _EXACT_AT)))
    return found


def _drawn(points: Sequence[Point]) -> Sequence[Point]:
    """Return as many points as a reader can tell apart: the Pareto front first, then the fastest."""
    if len(points) <= MOST_DRAWN:
        return points
    front = {point.curve.label for point in _front(points)}
    ranked = sorted(points, key=lambda point: (point.curve.label not in front, point.time_s))
    return ranked[:MOST_DRAWN]


def _chosen(ns: Sequence[int]) -> list[int]:
    """Return the longest length and two evenly spaced before it."""
    steps = {round((len(ns) - 1) * part / _PANELS) for part in range(1, _PANELS + 1)}
    return [ns[step] for step in sorted(steps)]


def _front(points: Sequence[Point]) -> list[Point]:
    front: list[Point] = []
    methods = [point for point in points if not point.curve.control]
    for point in sorted(methods, key=lambda point: (point.time_s, point.error)):
        if not front or point.error < front[-1].error:
            front.append(point)
    return front


def _drawing(
    points: Mapping[int, Sequence[Point]], styles: Mapping[str, Style], size: str, name: str, description: str
) -> str:
    width_in, height_in, font_pt = _PANEL_IN[size]
    rows, columns = (1, len(points)) if size == "wide" else (len(points), 1)
    em_in = font_pt / 72
    with canvas(width_in * columns, height_in * rows, font_pt) as figure:
        left, bottom = 4.2 * em_in / (width_in * columns), 4.2 * em_in / (height_in * rows)
        figure.subplots_adjust(left, bottom, 0.99, 1 - 2 * em_in / (height_in * rows), wspace=0.14, hspace=0.42)
        panels = figure.subplots(rows, columns, sharey=True, squeeze=False).flat
        for axes, (n, found) in zip(panels, points.items(), strict=True):
            _draw(axes, found, styles)
            _frame(axes, found)
            axes.set_title(f"n = {units.length(n)}", loc="left", color=stand_in("ink"))
        return to_svg(figure, name, description)


def _draw(axes: Axes, points: Sequence[Point], styles: Mapping[str, Style]) -> None:
    front = _front(points)
    times, errors = [point.time_s for point in front], [point.error for point in front]
    axes.plot(times, errors, drawstyle="steps-post", color=stand_in("muted"), lw=1, zorder=2)
    for point in points:
        style = styles[point.curve.label]
        colour = stand_in(style.colour)
        face = "none" if point.curve.control else colour
        axes.plot(point.time_s, point.error, marker=style.marker, ms=8, mfc=face, mec=colour, mew=1.6, ls="", zorder=3)


def _frame(axes: Axes, points: Sequence[Point]) -> None:
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_ylim(_EXACT_AT / 1.4, max(1.6, 1.3 * max(point.error for point in points)))
    axes.yaxis.set_major_locator(FixedLocator(_TICKS))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(
        FuncFormatter(lambda error, _: "exact" if error == _EXACT_AT else units.rough(error))
    )
    low, high = min(point.time_s for point in points) / 1.6, max(point.time_s for point in points) * 1.6
    axes.set_xlim(low, high)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 3) if high / low < _FEW_DECADES else (1,), numticks=6))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda time_s, _: units.tick(time_s, units.duration)))
    axes.grid(lw=0.6)
    axes.set_axisbelow(True)
    axes.set_xlabel("time")
    axes.tick_params(length=0)
    sns.despine(ax=axes, left=True, bottom=True)
