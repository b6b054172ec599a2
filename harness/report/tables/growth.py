"""Tables of how cost grows with length: fitted exponents with intervals, and the lengths at which methods cross."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from harness.report import units
from harness.report.pieces import NOTHING, Cell, Column, Table
from harness.report.tables.answer import EXACT, qualifies
from harness.report.tables.measures import name_cell
from harness.stats.analysis import DRAWS
from harness.stats.crossover import Crossover, crossover

if TYPE_CHECKING:
    from harness.report.figures.palette import Style
    from harness.report.sections import Curve, ReportSection
    from harness.stats.fit import Fit

QUANTITIES = {
    "time_s": "time",
    "peak_bytes": "resident memory",
    "allocator_bytes": "allocator memory",
    "comparisons": "comparisons",
}
_MEMORY = {"peak_bytes", "allocator_bytes"}
_CLAIM = "paper claims"
_TEXT = {_CLAIM, "model", "verdict", "fit range, sizes"}
_HEADINGS = (
    "exponent, 95 %",
    _CLAIM,
    "model",
    "verdict",
    "floor share",
    "local exponent, 95 %",
    "misfit",
    "held out",
    "fit range, sizes",
)
_READING = (
    "Exponent α of a + c·n^α with a fitted floor a, and its 95 % interval; the paper’s claim is about time; "
    "the floor share is a over the value at the longest length; the local exponent is the slope over the last two "
    "octaves; misfit is the root mean square of the relative residuals; held out is the error with which the "
    "shorter lengths predict the longest."
)


def growth_tables(section: ReportSection, styles: Mapping[str, Style]) -> list[Table | None]:
    """Return one table of exponents per quantity, None for those that were not measured."""
    return [_growth_table(section, name, title, styles) for name, title in QUANTITIES.items()]


def _growth_table(section: ReportSection, name: str, title: str, styles: Mapping[str, Style]) -> Table | None:
    fits = [(curve, curve.fit(name)) for curve in section.curves]
    claims = name not in _MEMORY and section.case.mode != "decode"  # papers' claims are about whole sequences
    rows = [[name_cell(curve, styles), *_fit_cells(curve, fit, claims)] for curve, fit in fits if fit is not None]
    headings = [heading for heading in _HEADINGS if claims or heading != _CLAIM]
    columns = [Column("method", numeric=False), *(Column(each, numeric=each not in _TEXT) for each in headings)]
    note = _READING if name == "time_s" else "Columns as in “Growth of time”."
    if rows and (draws := section.curves[0].analysis.draws) < DRAWS:
        note += f" With so many series, intervals use {draws} bootstrap draws instead of {DRAWS}."
    return Table(title=f"Growth of {title}", columns=columns, rows=rows, note=note) if rows else None


def _fit_cells(curve: Curve, fit: Fit, claims: bool) -> list[Cell]:
    claimed = curve.facts.claimed_time
    claim = Cell(claimed, sort=claimed) if claimed else NOTHING
    held = max(fit.challenge, key=lambda point: point.n, default=None)
    return [
        _exponent(fit.exponent, fit.interval),
        *([claim] if claims else []),
        Cell(fit.model, sort=fit.model),
        Cell(fit.verdict, sort=fit.verdict, tone="" if fit.verdict == "decided" else "muted"),
        _share(fit.floor_share),
        _exponent(fit.local_exponent, fit.local_interval),
        _share(fit.residual),
        _share(held.error) if held else NOTHING,
        Cell(f"{units.length(min(fit.sizes))} to {units.length(max(fit.sizes))}, {len(fit.sizes)}"),
    ]


def _exponent(value: float, bounds: tuple[float, float] | None = None) -> Cell:
    if not math.isfinite(value):
        return NOTHING
    known = bounds is not None and all(map(math.isfinite, bounds))
    return Cell(f"{value:.2f}", sort=value, note=units.interval(*bounds) if bounds and known else "")


def _share(value: float) -> Cell:
    return Cell(units.small(value), sort=value) if math.isfinite(value) else NOTHING


def slope_table(section: ReportSection, styles: Mapping[str, Style]) -> Table | None:
    """Plain log-log slope of time from each length to the next, without a model and with the floor included."""
    pairs = list(zip(section.lengths, section.lengths[1:], strict=False))
    rows = []
    for curve in section.curves:
        slopes = [_slope(curve, low, high) for low, high in pairs]
        if any(slope is not None for slope in slopes):
            cells = [NOTHING if slope is None else _exponent(slope) for slope in slopes]
            rows.append([name_cell(curve, styles), *cells])
    columns = [
        Column("method", numeric=False),
        *(Column(f"{units.length(low)}–{units.length(high)}") for low, high in pairs),
    ]
    note = "Plain log-log slope between neighbouring lengths; a floor pulls it down at short lengths."
    return Table(title="Slope of time between lengths", columns=columns, rows=rows, note=note) if rows else None


def _slope(curve: Curve, low: int, high: int) -> float | None:
    if low not in curve.timings or high not in curve.timings:
        return None
    return math.log(curve.timings[high].time_s / curve.timings[low].time_s) / math.log(high / low)


def strongest_exact(section: ReportSection) -> Curve | None:
    """Return the exact method to beat: the fastest at the longest length that any exact method finished."""
    for n in reversed(section.lengths):
        able = [curve for curve in section.curves if not curve.control and qualifies(curve, n, EXACT)]
        if able:
            return min(able, key=lambda curve: curve.timings[n].time_s)
    return None


def crossover_table(section: ReportSection, styles: Mapping[str, Style]) -> Table | None:
    """Table of the length from which each method is faster than the strongest exact one; None without fits."""
    exact = strongest_exact(section)
    slow = exact.fit("time_s") if exact else None
    if exact is None or slow is None:
        return None
    rows = []
    for curve in section.curves:
        fast = curve.fit("time_s")
        if curve is not exact and fast is not None:
            found = crossover(slow, fast)
            rows.append([name_cell(curve, styles), *_crossover_cells(found), _error_beyond(curve, found)])
    columns = [
        Column("method", numeric=False),
        Column(f"faster than {exact.label} from"),
        Column("95 % interval", numeric=False),
        Column("kind", numeric=False),
        Column("error at that length"),
    ]
    note = (
        "Where the fitted time curves cross. Observed: measured on both sides; extrapolated: beyond measured lengths."
    )
    return Table(title=f"Crossover with {exact.label}", columns=columns, rows=rows, note=note) if rows else None


def _crossover_cells(found: Crossover) -> list[Cell]:
    if math.isinf(found.n):
        return [NOTHING, NOTHING, Cell(f"never up to {units.length(found.n_max)}", sort="never")]
    low, high = found.interval
    n = f"≤ {_tokens(found.n)}" if found.below else _tokens(found.n)
    bounds = Cell(f"{_tokens(low)} to {_tokens(high)}", sort=low)
    return [Cell(n, sort=found.n), bounds, Cell(found.label, sort=found.label)]


def _tokens(n: float) -> str:
    """Format a fitted length, which need not be an integer: 834 or 5.30K tokens; "never" if infinite."""
    if math.isinf(n):
        return "never"
    return f"{units.digits(n / 1024)}K" if n >= 1024 else units.digits(n)


def _error_beyond(curve: Curve, found: Crossover) -> Cell:
    """Return the error at the first judged length beyond the crossover."""
    beyond = {n: error for n, error in curve.values("error").items() if n >= found.n}
    if curve.facts.exact or not beyond:
        return Cell("exact", tone="none") if curve.facts.exact else NOTHING
    n = min(beyond)
    return Cell(units.percent(beyond[n]), sort=beyond[n], note=f"at {units.length(n)}")
