"""The main question of the report: at each length, which method is fastest within an allowed error?

A method qualifies for a tolerance if its class is exact, or if its `error` against exact attention, in its worst round,
is at most the tolerance. Controls never qualify; they are looked up separately.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.report.pieces import Cell, Column, Span, Strip, Table
from harness.report.units import duration, length, listed, percent, times

if TYPE_CHECKING:
    from harness.report.figures.palette import Style
    from harness.report.sections import Curve, ReportSection

EXACT = 0.0
LOOSEST = 0.20
ANY = math.inf
TOLERANCES = (EXACT, 0.01, 0.05, LOOSEST, ANY)
DEFINITIONS = (
    "error = ‖o − o*‖ / ‖o*‖, the distance from exact attention o* relative to its size; "
    "error_v = rms‖o − o*‖ / rms‖v‖, that distance relative to the values v, for inputs on which o* is nearly zero. "
    "Tolerances are judged by error, in the worst round."
)


@dataclass(frozen=True)
class Pick:
    """The fastest curve at length `n`. `speedup` is relative to the fastest exact method there, None without one."""

    n: int
    curve: Curve
    time_s: float
    error: float | None
    speedup: float | None
    tied: tuple[str, ...]


def qualifies(curve: Curve, n: int, tolerance: float) -> bool:
    """Return whether the curve has a time at n and an error of at most `tolerance`; an unmeasured error is infinite."""
    if n not in curve.timings:
        return False
    return curve.facts.exact or (tolerance > EXACT and curve.values("error").get(n, math.inf) <= tolerance)


def fastest(section: ReportSection, n: int, tolerance: float, *, control: bool = False) -> Pick | None:
    """Return the fastest method (or control) within `tolerance` at n; None if nothing qualifies.

    `tied` names the methods that cannot be told apart from it: their fastest round is no slower than its slowest. If
    the fastest is tied with an exact method, the exact one is picked.
    """
    able = [curve for curve in section.curves if curve.control is control and qualifies(curve, n, tolerance)]
    if not able:
        return None
    able.sort(key=lambda curve: curve.timings[n].time_s)
    slowest_s = able[0].timings[n].high_s
    alike = [curve for curve in able if curve.timings[n].low_s <= slowest_s]
    best = next((curve for curve in alike if curve.facts.exact), able[0])
    time_s = best.timings[n].time_s
    exact_s = exact_time_s(section, n)
    return Pick(
        n=n,
        curve=best,
        time_s=time_s,
        error=best.values("error").get(n),
        speedup=None if exact_s is None else exact_s / time_s,
        tied=tuple(curve.label for curve in alike if curve is not best),
    )


def exact_time_s(section: ReportSection, n: int) -> float | None:
    """Return the time of the fastest exact method at n; None if none finished."""
    able = [curve for curve in section.curves if not curve.control and qualifies(curve, n, EXACT)]
    return min((curve.timings[n].time_s for curve in able), default=None)


def tolerance_name(tolerance: float) -> str:
    """Return "exact", "within 5 %" or "any error"."""
    if tolerance == ANY:
        return "any error"
    return f"within {tolerance:.0%}".replace("%", " %") if tolerance else "exact"


def answer_table(section: ReportSection, styles: Mapping[str, Style]) -> Table:
    """Table with one row per length: the fastest within each tolerance, and the fastest control within the loosest."""
    rows = []
    for n in section.lengths:
        picks = [fastest(section, n, tolerance) for tolerance in TOLERANCES]
        control = fastest(section, n, LOOSEST, control=True)
        cells = [_pick_cell(pick, styles) for pick in [*picks, control]]
        rows.append([Cell(length(n), sort=n), *cells])
    titles = [*map(tolerance_name, TOLERANCES), f"control {tolerance_name(LOOSEST)}"]
    return Table(
        title="Fastest at each length",
        columns=[Column("length"), *(Column(title, numeric=False) for title in titles)],
        rows=rows,
        note="Time of the median round, speed-up over the fastest exact method at that length, and error. "
        "“≈” names methods whose rounds overlap with those of the fastest. Controls are for comparison.",
    )


def _pick_cell(pick: Pick | None, styles: Mapping[str, Style]) -> Cell:
    if pick is None:
        return Cell("none", tone="none")
    parts = [duration(pick.time_s)]
    if not pick.curve.facts.exact:
        parts += [] if pick.speedup is None else [times(pick.speedup)]
        parts += [] if pick.error is None else [percent(pick.error)]
    parts += [f"≈ {listed(pick.tied)}"] if pick.tied else []
    return Cell(pick.curve.label, sort=pick.curve.label, note=" · ".join(parts), style=styles[pick.curve.label])


def answer_strip(section: ReportSection, styles: Mapping[str, Style]) -> Strip:
    """The same answer as bars over the lengths."""
    bars = {tolerance_name(tolerance): _spans(section, tolerance, styles) for tolerance in TOLERANCES}
    return Strip(ticks=[length(n) for n in section.lengths], bars=bars)


def _spans(section: ReportSection, tolerance: float, styles: Mapping[str, Style]) -> list[Span]:
    spans = []
    for label, lengths in runs_of(section, tolerance):
        first, last = length(lengths[0]), length(lengths[-1])
        words = first if first == last else f"{first} to {last}"
        spans.append(Span(label, len(lengths), words, styles[label] if label else None))
    return spans


def runs_of(section: ReportSection, tolerance: float) -> list[tuple[str, list[int]]]:
    """Return consecutive lengths with the same fastest label ("" for none), in order of length."""
    runs: list[tuple[str, list[int]]] = []
    for n in section.lengths:
        pick = fastest(section, n, tolerance)
        label = pick.curve.label if pick else ""
        if runs and runs[-1][0] == label:
            runs[-1][1].append(n)
        else:
            runs.append((label, [n]))
    return runs
