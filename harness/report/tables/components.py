"""Tables of an attention's stages: each stage's share of the total time, its growth, and what the authors claim."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from harness.report import units
from harness.report.pieces import NOTHING, Cell, Column, Group, Table
from harness.report.tables.measures import name_cell
from harness.subjects.component import SETTING, SUBJECT

if TYPE_CHECKING:
    from harness.report.figures.palette import Style
    from harness.report.sections import Curve, ReportSection
    from harness.stats.fit import Fit

_NOTE = (
    "Share of the sum of all stages, each timed separately, at the longest length measured for all. Exponent α of "
    "a + c·n^α with a fitted floor a; the plain slope is that of a log-log regression without a floor. “Sum "
    "over whole” is that sum divided by the time of one call of the attention."
)


def component_groups(sections: Sequence[ReportSection], styles: Mapping[str, Style]) -> list[Group]:
    """Return one table per attention whose stages were timed."""
    found = []
    for section in sections:
        if section.case.subject != SUBJECT:
            continue
        by_method: dict[str, list[Curve]] = {}
        for curve in section.curves:
            by_method.setdefault(curve.label.rpartition(": ")[0], []).append(curve)
        for label, curves in by_method.items():
            if table := _table(label, curves, _whole(sections, section, label), styles):
                found.append(Group(section.title, [table]))
    return found


def _whole(sections: Sequence[ReportSection], beside: ReportSection, label: str) -> Curve | None:
    """Return the curve of the whole attention under the same circumstances, or None."""
    wanted = beside.case.model_dump(exclude={"subject", "backend", "label", "settings", "control", "n"})
    for section in sections:
        alike = section.case.model_dump(include=set(wanted)) == wanted
        if section.judged and alike:
            return next((curve for curve in section.curves if curve.label == label), None)
    return None


def _table(label: str, curves: Sequence[Curve], whole: Curve | None, styles: Mapping[str, Style]) -> Table | None:
    timed = [curve for curve in curves if curve.timings]
    common = set.intersection(*(set(curve.timings) for curve in timed)) if timed else set()
    if not common:
        return None
    n = max(common)
    total = sum(curve.timings[n].time_s for curve in timed)
    rows = [_row(curve, n, total, styles) for curve in timed]
    note = _NOTE
    if never := [_stage(curve) for curve in curves if not curve.timings]:
        note += f" Not timed and not included in the shares: {', '.join(never)}."
    if whole and n in whole.timings:
        note += f" Here it is {total / whole.timings[n].time_s:.2f}."
    headings = ("share", "claimed share", "time", "exponent, 95 %", "plain slope", "claimed exponent", "verdict")
    headings += ("floor share",)
    columns = [Column("stage", numeric=False), *(Column(each, numeric=each != "verdict") for each in headings)]
    return Table(f"Stages of {label} at {units.length(n)} tokens", columns, rows, note)


def _row(curve: Curve, n: int, total: float, styles: Mapping[str, Style]) -> list[Cell]:
    time_s, fit = curve.timings[n].time_s, curve.fit("time_s")
    claim = curve.facts.claimed_components.get(_stage(curve))
    claims = [NOTHING, NOTHING] if claim is None else [_percent(claim[0]), _number(claim[1])]
    return [
        name_cell(curve, styles),
        _percent(time_s / total),
        claims[0],
        Cell(units.duration(time_s), sort=time_s),
        _exponent(fit),
        _number(plain_slope({m: timing.time_s for m, timing in curve.timings.items()})),
        claims[1],
        Cell(fit.verdict, sort=fit.verdict) if fit else NOTHING,
        _percent(fit.floor_share) if fit else NOTHING,
    ]


def _stage(curve: Curve) -> str:
    return str(curve.series.case.settings.get(SETTING, curve.label))


def plain_slope(times: Mapping[int, float]) -> float:
    """Slope of the least-squares line through log time over log n; NaN with fewer than two lengths."""
    if len(times) < 2:
        return math.nan
    x, y = [math.log(n) for n in times], [math.log(time_s) for time_s in times.values()]
    middle = sum(x) / len(x)
    return sum((a - middle) * b for a, b in zip(x, y, strict=True)) / sum((a - middle) ** 2 for a in x)


def _exponent(fit: Fit | None) -> Cell:
    if fit is None or not math.isfinite(fit.exponent):
        return NOTHING
    return Cell(f"{fit.exponent:.2f}", sort=fit.exponent, note=units.interval(*fit.interval))


def _number(value: float) -> Cell:
    return Cell(f"{value:.2f}", sort=value) if math.isfinite(value) else NOTHING


def _percent(value: float) -> Cell:
    return Cell(f"{value:.1%}", sort=value)
