"""Plot a quantity against length on log-log axes: medians, fitted curves with intervals, and bounds of failed cells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from harness.report import units
from harness.report.figures.labels import End, label_ends
from harness.report.figures.palette import Style, stand_in
from harness.report.figures.svg import SIZES, Size, canvas, to_svg
from harness.report.pieces import Figure
from harness.stats.fit import PERCENTILES, Fit

if TYPE_CHECKING:
    from harness.report.sections import Curve, ReportSection

MOST_DRAWN = 24
_BOUND_PT = 15
_GRID_POINTS = 40
_LARGEST_MISFIT = 0.2
_LEAST_ERROR = 1e-3
_LEAST_SPAN = 1.05  # of the value axis
_POINTS = (
    "Points: medians; bars: fastest to slowest round. Lines: fits with 95 % bands; where there is no fit, the points "
    "are joined."
)
_WORST = "Points: the worst round; errors below 0.1 % are drawn at 0.1 %; exact methods are omitted."
_ARROWS = " Arrows: did not finish; the true value is above the base of the arrow."


@dataclass(frozen=True)
class Quantity:
    """What a figure shows: a row field or metric, its heading, its formatter and the base of its axis.

    `cost` distinguishes costs, which are fitted and drawn for all methods, from errors, which are joined by lines and
    omitted for exact methods, where they are only rounding.
    """

    field: str
    title: str
    formatter: units.Formatter
    base: int = 10
    cost: bool = True


def length_figure(section: ReportSection, quantity: Quantity, styles: Mapping[str, Style], name: str) -> Figure | None:
    """Plot one quantity against length, in both widths; None if nothing was measured."""
    able = [curve for curve in section.curves if points_of(curve, quantity)]
    if not able:
        return None
    curves = drawn_of(able, quantity)
    scope = f" on {section.title}" if section.title else ""
    labels = units.listed([units.short(curve.label) for curve in curves])
    description = f"{quantity.title} against length{scope}, both logarithmic, for {labels}"
    drawings = {
        size: _drawing(curves, section.lengths, quantity, styles, size, f"{name}-{size}", description) for size in SIZES
    }
    note = _POINTS if quantity.cost else _WORST
    note += _ARROWS if any(bounds_of(curve, quantity) for curve in curves) else ""
    if len(curves) < len(able):
        note += f" Shown: {len(curves)} of {len(able)} series, first those that reach furthest, then the lowest."
    legend = {curve.label: styles[curve.label] for curve in curves}
    return Figure(f"{quantity.title} against length", drawings["wide"], drawings["narrow"], legend, note)


def drawn_of(curves: Sequence[Curve], quantity: Quantity) -> list[Curve]:
    """Return as many curves as a reader can tell apart: those that reach furthest, and of these the lowest there."""

    def place(curve: Curve) -> tuple[int, float]:
        points = points_of(curve, quantity)
        return -max(points), points[max(points)]

    chosen = {curve.label for curve in sorted(curves, key=place)[:MOST_DRAWN]}
    return [curve for curve in curves if curve.label in chosen]


def points_of(curve: Curve, quantity: Quantity) -> dict[int, float]:
    """Map n to the positive value to draw."""
    if quantity.field == "time_s":
        return {n: timing.time_s for n, timing in curve.timings.items()}
    if curve.facts.exact and not quantity.cost:
        return {}
    least = 0.0 if quantity.cost else _LEAST_ERROR
    return {n: max(value, least) for n, value in curve.values(quantity.field).items() if max(value, least) > 0}


def fit_to_draw(curve: Curve, quantity: Quantity) -> Fit | None:
    """Return the fit of a cost, unless it misses its points by so much that the line would mislead."""
    fit = curve.fit(quantity.field) if quantity.cost else None
    return fit if fit is not None and fit.residual <= _LARGEST_MISFIT else None


def bounds_of(curve: Curve, quantity: Quantity) -> dict[int, float]:
    """Map n to a lower bound for each cell without a value: the largest value at a shorter length.

    The limit that the cell ran into is not used, because limits also cover a case's set-up and checks.
    """
    points = points_of(curve, quantity) if quantity.cost else {}
    bounds = {}
    for n, (status, _) in sorted(curve.censored.items()):
        shorter = [value for length, value in points.items() if length < n]
        if status in {"oom", "timeout", "skipped"} and shorter:
            bounds[n] = max(shorter)
    return bounds


def _drawing(
    curves: Sequence[Curve],
    lengths: Sequence[int],
    quantity: Quantity,
    styles: Mapping[str, Style],
    size: str,
    name: str,
    description: str,
) -> str:
    across = SIZES[size]
    ends = [_end(curve, quantity, styles[curve.label]) for curve in curves]
    with canvas(across.width_in, across.height_in, across.font_pt) as figure:
        margin_in = across.width_of(max(len(end.text) for end in ends)) if across.labelled else across.margin_in
        figure.subplots_adjust(*across.frame(right_in=margin_in))
        axes = figure.subplots()
        axes.set_xscale("log", base=2)
        axes.set_yscale("log", base=quantity.base)
        for order, curve in enumerate(reversed(curves)):
            _draw_curve(axes, curve, quantity, styles[curve.label], zorder=3 + order / 100)
        _frame(axes, lengths, quantity, across)
        if across.labelled:
            label_ends(axes, ends, across.font_pt)
        return to_svg(figure, name, description)


def _end(curve: Curve, quantity: Quantity, style: Style) -> End:
    points = points_of(curve, quantity)
    fit = fit_to_draw(curve, quantity)
    label = units.short(curve.label)
    text = f"{label} n^{fit.exponent:.2f}" if fit is not None and fit.identified else label
    return End(max(points), points[max(points)], text, style)


def _draw_curve(axes: Axes, curve: Curve, quantity: Quantity, style: Style, zorder: float) -> None:
    points = points_of(curve, quantity)
    if not points:
        return
    ns, values, colour = list(points), list(points.values()), stand_in(style.colour)
    fit = fit_to_draw(curve, quantity)
    if fit is None:
        axes.plot(ns, values, color=colour, ls=style.line, lw=style.width, zorder=zorder)
    else:
        _draw_fit(axes, fit, style, zorder)
    if quantity.field == "time_s":
        timings = curve.timings.values()
        axes.vlines(ns, [each.low_s for each in timings], [each.high_s for each in timings], color=colour, lw=1)
    edge = stand_in("surface")
    axes.plot(ns, values, ls="", marker=style.marker, ms=4.5, color=colour, mec=edge, mew=0.5, zorder=zorder + 1)
    _draw_bounds(axes, points, bounds_of(curve, quantity), colour, zorder)


def _draw_fit(axes: Axes, fit: Fit, style: Style, zorder: float) -> None:
    grid = np.geomspace(min(fit.sizes), max(fit.sizes), _GRID_POINTS)
    colour = stand_in(style.colour)
    axes.plot(grid, fit.curve_at(grid), color=colour, ls=style.line, lw=style.width, zorder=zorder)
    low, high = np.percentile(fit.draws_at(grid), PERCENTILES, axis=0)
    axes.fill_between(grid, low, high, color=colour, alpha=0.16, lw=0, zorder=zorder - 1)


def _draw_bounds(
    axes: Axes, points: Mapping[int, float], bounds: Mapping[int, float], colour: str, zorder: float
) -> None:
    arrow = {"arrowstyle": "<|-", "color": colour, "lw": 1.1, "shrinkA": 0, "shrinkB": 0}
    for n, bound in bounds.items():
        axes.annotate(
            "", (n, bound), xytext=(0, _BOUND_PT), textcoords="offset points", arrowprops=arrow, zorder=zorder
        )
    if bounds:
        last = max(n for n in points if n < min(bounds))
        feet = {last: points[last], **bounds}
        axes.plot(list(feet), list(feet.values()), color=colour, ls=(0, (1, 3)), lw=1, zorder=zorder)


def _frame(axes: Axes, lengths: Sequence[int], quantity: Quantity, size: Size) -> None:
    step = -(-len(lengths) // size.most_ticks)
    axes.xaxis.set_major_locator(FixedLocator(lengths[(len(lengths) - 1) % step :: step]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda n, _: units.length(round(n))))
    low, high = axes.get_ylim()
    if not high > _LEAST_SPAN * low:  # all values are alike: matplotlib's margins around one point may round to nothing
        low, high = low / 2, high * 2
        axes.set_ylim(low, high)
    few = quantity.base == 10 and high / low < 200
    axes.yaxis.set_major_locator(LogLocator(quantity.base, subs=(1, 2, 5) if few else (1,), numticks=9))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: units.tick(value, quantity.formatter)))
    axes.set_xlim(lengths[0] / 1.25, lengths[-1] * 1.25)
    axes.grid(axis="y", lw=0.6)
    axes.set_axisbelow(True)
    axes.set_xlabel("length n, tokens")
    axes.tick_params(length=0)
    sns.despine(ax=axes, left=True)
