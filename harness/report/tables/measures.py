"""Tables with one row per series and one column per length: time, throughput, memory, and any other number of a row."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from harness.report import units
from harness.report.pieces import NOTHING, Cell, Column, Table
from harness.stats.crossover import feasible

if TYPE_CHECKING:
    from harness.report.figures.palette import Style
    from harness.report.sections import Curve, ReportSection


def by_length(
    title: str,
    section: ReportSection,
    cell_of: Callable[[Curve, int], Cell | None],
    styles: Mapping[str, Style],
    *,
    note: str = "",
    skip_empty: bool = False,
) -> Table | None:
    """Build a table of `cell_of(curve, n)`; None means no value, and the cell shows its status instead.

    Lengths without any value are omitted, and with `skip_empty` so are series without any. Returns None if nothing is
    left.
    """
    cells = {(curve.label, n): cell_of(curve, n) for curve in section.curves for n in section.lengths}
    ns = [n for n in section.lengths if any(cells[curve.label, n] for curve in section.curves)]
    if not ns:
        return None
    rows = []
    for curve in section.curves:
        values = [cells[curve.label, n] for n in ns]
        if any(values) or not skip_empty:
            filled = [value or _absent(curve, n) for value, n in zip(values, ns, strict=True)]
            rows.append([name_cell(curve, styles), *filled])
    columns = [Column("method", numeric=False), *(Column(units.length(n)) for n in ns)]
    return Table(title=title, columns=columns, rows=rows, note=note)


def name_cell(curve: Curve, styles: Mapping[str, Style]) -> Cell:
    """Return the first cell of a series' row."""
    kind = "control" if curve.control else "exact" if curve.facts.exact else ""
    note = "" if kind in curve.label else kind
    return Cell(curve.label, sort=curve.label, note=note, style=styles[curve.label])


def _absent(curve: Curve, n: int) -> Cell:
    status, reason = curve.censored.get(n, ("–", ""))
    return Cell(status, tone="bad" if status in {"wrong", "crash"} else "muted" if reason or status != "–" else "none")


def value_table(
    title: str,
    section: ReportSection,
    name: str,
    formatter: units.Formatter,
    styles: Mapping[str, Style],
    *,
    note: str = "",
    skip_empty: bool = True,
) -> Table | None:
    """Table of one numeric row field or metric."""
    values = {curve.label: curve.values(name) for curve in section.curves}

    def cell_of(curve: Curve, n: int) -> Cell | None:
        value = values[curve.label].get(n)
        return None if value is None else Cell(formatter(value), sort=value)

    return by_length(title, section, cell_of, styles, note=note, skip_empty=skip_empty)


def time_table(section: ReportSection, styles: Mapping[str, Style]) -> Table | None:
    """Table of median time, its spread over rounds and the number of rounds."""
    best = {n: min(curve.timings[n].time_s for curve in _timed(section, n)) for n in _timed_lengths(section)}

    def cell_of(curve: Curve, n: int) -> Cell | None:
        timing = curve.timings.get(n)
        if timing is None:
            return None
        spread = f"±{100 * timing.spread:.0f} % · " if timing.spread else ""
        tone = "best" if not curve.control and timing.time_s == best.get(n) else ""
        return Cell(units.duration(timing.time_s), sort=timing.time_s, note=f"{spread}{timing.rounds}×", tone=tone)

    note = (
        "Median over rounds, each a fresh process; ± half the range from fastest to slowest round (with a single "
        "round, half the interquartile range of its samples); × rounds. Bold: the fastest non-control, at any error."
    )
    return by_length("Time", section, cell_of, styles, note=note)


def _timed(section: ReportSection, n: int) -> list[Curve]:
    return [curve for curve in section.curves if n in curve.timings and not curve.control]


def _timed_lengths(section: ReportSection) -> list[int]:
    return [n for n in section.lengths if _timed(section, n)]


def cost_tables(section: ReportSection, styles: Mapping[str, Style]) -> list[Table | None]:
    """Return the tables of time, throughput and memory of one section."""
    beyond = "Bytes of one call beyond its inputs, output included"
    resident = f"{beyond}: the process's resident high-water mark."
    traced = f"{beyond}: from torch's allocator trace, the same on every run."
    return [
        time_table(section, styles),
        value_table("Throughput, tokens per second", section, "tokens_per_s", units.rate, styles),
        value_table("Peak memory, resident", section, "peak_bytes", units.size, styles, note=resident),
        value_table("Peak memory, allocator", section, "allocator_bytes", units.size, styles, note=traced),
    ]


def side_tables(section: ReportSection, styles: Mapping[str, Style]) -> list[Table | None]:
    """Return the tables of secondary costs: output, state, preparation, comparisons."""
    bound = "Scores that enter the output, over all heads and the batch."
    return [
        value_table("Output only", section, "output_bytes", units.size, styles, note="Part of the peaks above."),
        value_table("Decoding state", section, "state_bytes", units.size, styles, note="Kept after the last key."),
        value_table("Preparation", section, "prepare_s", units.duration, styles, note="Once, outside the timed call."),
        value_table("Comparisons of queries with keys", section, "comparisons", units.count, styles, note=bound),
    ]


def reach_table(section: ReportSection, styles: Mapping[str, Style]) -> Table:
    """Table of the longest length that each series finished, and what stopped it at the next."""
    rows = [[name_cell(curve, styles), *_reach_cells(curve)] for curve in section.curves]
    titles = [Column("method", numeric=False), Column("longest finished"), Column("stopped at")]
    why = [Column("status", numeric=False), Column("why", numeric=False)]
    return Table(title="Longest feasible length", columns=[*titles, *why], rows=rows)


def _reach_cells(curve: Curve) -> list[Cell]:
    reach = feasible(curve.series)
    longest = Cell("none", tone="none") if reach.largest is None else _length_cell(reach.largest)
    if reach.refused is not None:
        status, reason = Cell(reach.status, sort=reach.status), Cell(reach.reason, sort=reach.reason)
        return [longest, _length_cell(reach.refused), status, reason]
    whole = reach.largest == max(row.n for row in curve.rows)
    return [
        longest,
        NOTHING,
        NOTHING,
        Cell("reached the longest requested length" if whole else "see “Not measured”", tone="muted"),
    ]


def _length_cell(n: int) -> Cell:
    return Cell(units.length(n), sort=n)
