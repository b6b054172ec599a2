"""Tables of accuracy against exact attention, by inputs and length, next to controls, and of causality violations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from harness.common.metrics import METRICS
from harness.report import units
from harness.report.faults import leaks
from harness.report.pieces import NOTHING, Cell, Column, Table
from harness.report.tables.measures import name_cell

if TYPE_CHECKING:
    from harness.report.figures.palette import Style
    from harness.report.sections import Curve, ReportSection

ACCURACY = ("error", "error_v", "kept_mass")
CHECKS = ("naive_error", "gradient_error")
HANDLED = {*ACCURACY, *CHECKS, "leak"}
_SHORT = {"error": "error", "error_v": "error_v", "kept_mass": "attention recall"}


def glance_table(sections: Sequence[ReportSection], styles: Mapping[str, Style]) -> Table | None:
    """Table with a row per method and a column per inputs and metric, each at the longest length judged there."""
    judged = [(section, n) for section in sections if (n := _longest_judged(section)) is not None]
    picks = [(section, n, name) for name in ACCURACY for section, n in judged if _any(section, name, n)]
    if not picks:
        return None
    rows = []
    for label, curve in _one_curve_a_label(sections).items():
        cells = [_metric_cell(_find(section, label), name, n) for section, n, name in picks]
        if any(cell.sort is not None for cell in cells):
            rows.append([name_cell(curve, styles), *cells])
    columns = [Column(f"{_prefix(section)}{_SHORT[name]} at {units.length(n)}") for section, n, name in picks]
    return Table("Accuracy at a glance", [Column("method", numeric=False), *columns], rows, note=_meanings(ACCURACY))


def metric_table(sections: Sequence[ReportSection], name: str, styles: Mapping[str, Style]) -> Table | None:
    """Table of one metric by method, circumstances and length, with all sections in one table."""
    entries = [
        (section, curve, values) for section in sections for curve in section.curves if (values := curve.values(name))
    ]
    if not entries:
        return None
    ns = sorted({n for _, _, values in entries for n in values})
    several = len(sections) > 1
    rows = []
    for section, curve, values in entries:
        place = [Cell(section.short, sort=section.short)] if several else []
        cells = [metric_cell(name, values[n]) if n in values else NOTHING for n in ns]
        rows.append([name_cell(curve, styles), *place, *cells])
    place = [Column("on", numeric=False)] if several else []
    columns = [Column("method", numeric=False), *place, *(Column(units.length(n)) for n in ns)]
    return Table(metric_title(name), columns, rows, note=_meanings([name]))


def metric_title(name: str) -> str:
    """Return a metric's name as a heading."""
    return _SHORT.get(name, name.replace("_", " ")).capitalize() if name != "error_v" else "Error_v"


def metric_cell(name: str, value: float) -> Cell:
    """Format a metric's value in its unit; ratios that are shares are shown as percentages."""
    metric = METRICS.get(name)
    if name in HANDLED or name == "accuracy":
        return Cell(units.percent(value), sort=value)
    unit = f" {metric.unit}" if metric and metric.unit else ""
    return Cell(f"{units.digits(value)}{unit}", sort=value)


def leak_table(sections: Sequence[ReportSection], styles: Mapping[str, Style]) -> Table | None:
    """Table of the worst `leak` of every causal series, next to the causality that its class promises."""
    rows = []
    several = len(sections) > 1
    for section in sections:
        for curve in section.curves:
            worst = curve.worst("leak") if curve.series.case.causal else {}
            if worst:
                place = [Cell(section.short, sort=section.short)] if several else []
                rows.append([name_cell(curve, styles), *place, *_leak_cells(curve, worst)])
    place = [Column("on", numeric=False)] if several else []
    headings = [
        Column("largest violation"),
        Column("at"),
        Column("verdict", numeric=False),
        Column("claimed", numeric=False),
    ]
    note = f"{METRICS['leak'].title.capitalize()}; more than rounding of the dtype counts as a violation."
    return (
        Table("Causality violations", [Column("method", numeric=False), *place, *headings], rows, note=note)
        if rows
        else None
    )


def _leak_cells(curve: Curve, worst: Mapping[int, float]) -> list[Cell]:
    n = max(worst, key=lambda length: worst[length])
    verdict = Cell("violated", sort="violated", tone="bad") if leaks(curve) else Cell("none", sort="none", tone="muted")
    promise = curve.facts.causality or "–"
    return [
        Cell(units.percent(worst[n]), sort=worst[n]),
        Cell(units.length(n), sort=n),
        verdict,
        Cell(promise, sort=promise),
    ]


def _longest_judged(section: ReportSection) -> int | None:
    judged = [n for curve in section.curves if not curve.facts.exact for n in curve.values("error")]
    return max(judged, default=None)


def _any(section: ReportSection, name: str, n: int) -> bool:
    return any(n in curve.values(name) for curve in section.curves)


def _one_curve_a_label(sections: Sequence[ReportSection]) -> dict[str, Curve]:
    curves = sorted((curve for section in sections for curve in section.curves), key=lambda curve: curve.control)
    return {curve.label: curve for curve in curves}


def _find(section: ReportSection, label: str) -> Curve | None:
    return next((curve for curve in section.curves if curve.label == label), None)


def _metric_cell(curve: Curve | None, name: str, n: int) -> Cell:
    value = curve.values(name).get(n) if curve else None
    return NOTHING if value is None else metric_cell(name, value)


def _prefix(section: ReportSection) -> str:
    return f"{section.short}: " if section.short else ""


def _meanings(names: Sequence[str]) -> str:
    known = [f"{_SHORT.get(name, name)}: {METRICS[name].title}" for name in names if name in METRICS]
    return f"{'; '.join(known)}." if known else ""
