"""The table of speed relative to the strongest exact method of the same run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from harness.report import units
from harness.report.pieces import Cell, Table
from harness.report.tables.growth import strongest_exact
from harness.report.tables.measures import by_length

if TYPE_CHECKING:
    from harness.report.figures.palette import Style
    from harness.report.sections import Curve, ReportSection


def speed_table(section: ReportSection, styles: Mapping[str, Style]) -> Table | None:
    """Table of how many times as fast as the strongest exact method each other series is; None if there is nothing.

    The range runs from the slowest round against the fastest of the exact method to the opposite.
    """
    exact = strongest_exact(section)
    if exact is None:
        return None

    def cell_of(curve: Curve, n: int) -> Cell | None:
        own, other = curve.timings.get(n), exact.timings.get(n)
        if own is None or other is None:
            return None
        ratio = other.time_s / own.time_s
        low, high = units.times(other.low_s / own.high_s), units.times(other.high_s / own.low_s)
        return Cell(units.times(ratio), sort=ratio, note="" if low == high or curve is exact else f"{low} to {high}")

    table = by_length(
        f"Speed relative to {exact.label}",
        section,
        cell_of,
        styles,
        note=f"Median time of {exact.label} over that of the method, in the same run: above 1×, the method is faster. "
        f"The range is that of rounds, as in the table of times.",
        skip_empty=True,
    )
    return table if table and len(table.rows) > 1 else None
