"""From rows to series: what a fit, a comparison or a table takes as one curve over n.

A series is everything that shares an identity except n and round. Times are used only from cells whose
answer was right in every round; a cell without any such row is censored: never data, kept with its reason. So is one
whose every time is none, zero from a coarse clock or an edited file.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from harness.points import LARGEST, SMALLEST
from harness.rows import Case, Row

Samples = dict[int, list[list[float]]]


@dataclass(frozen=True)
class Series:
    """One curve over n. `case` is the shared identity with n = 0; `key` its digest, stable across runs.

    `rows` holds one row per (n, round), sorted by them.
    """

    key: str
    label: str
    case: Case
    rows: list[Row]

    def times(self) -> Samples:
        """n -> for each round the raw timed samples in seconds, from cells that are not censored."""
        return self._collect(_timed_samples_s)

    def quantity(self, name: str) -> Samples:
        """n -> for each round a list of one value of `name`, a numeric row field or a metric.

        Values that are not finite, and fields that are negative, are none. Raises ValueError for a name that is a row
        field but not a number.
        """
        return self._collect(lambda row: _value(row, name))

    def censored(self) -> dict[int, tuple[str, str]]:
        """n -> (status, reason) of the cells that give no data: wrong in any round, or never ok."""
        censored: dict[int, tuple[str, str]] = {}
        for n, rows in self._cells().items():
            wrong = [row for row in rows if row.status == "wrong"]
            if wrong or all(row.status != "ok" or impossible_time(row) for row in rows):
                row = (wrong or rows)[-1]
                censored[n] = (row.status, row.reason or impossible_time(row))
        return censored

    def measured(self) -> bool:
        """Whether any cell gives data."""
        return len(self.censored()) < len(self._cells())

    def _cells(self) -> dict[int, list[Row]]:
        cells: dict[int, list[Row]] = {}
        for row in self.rows:
            cells.setdefault(row.n, []).append(row)
        return cells

    def _collect(self, values_of: Callable[[Row], list[float]]) -> Samples:
        censored = self.censored()
        collected: Samples = {}
        for row in self.rows:
            values = values_of(row) if row.status == "ok" and row.n not in censored else []
            if values:
                collected.setdefault(row.n, []).append(values)
        return collected


def group_series(rows: Sequence[Row]) -> list[Series]:
    """Rows by series, in order of first appearance; of several rows with one identity and round the last counts."""
    cells: dict[str, dict[tuple[int, int], Row]] = {}
    for row in rows:
        cells.setdefault(_shared(row).digest(), {})[row.n, row.round] = row
    series = []
    for key, by_cell in cells.items():
        ordered = [by_cell[cell] for cell in sorted(by_cell)]
        series.append(Series(key=key, label=ordered[0].label, case=_shared(ordered[0]), rows=ordered))
    return series


def impossible_time(row: Row) -> str:
    """Why the time of an ok row cannot be one; empty if it can, or there is none."""
    times_s = [*(row.samples_s or ()), *([] if row.time_s is None else [row.time_s])] if row.status == "ok" else []
    strange = next((time_s for time_s in times_s if not SMALLEST <= time_s <= LARGEST), None)
    return "" if strange is None else f"a time of {strange:g} s cannot be right and is left out"


def _shared(row: Row) -> Case:
    return row.case.model_copy(update={"n": 0})


def _timed_samples_s(row: Row) -> list[float]:
    if impossible_time(row):
        return []
    if row.samples_s:
        return list(row.samples_s)
    return [] if row.time_s is None else [row.time_s]


def _value(row: Row, name: str) -> list[float]:
    if name not in Row.model_fields:
        return [row.metrics[name]] if name in row.metrics and math.isfinite(row.metrics[name]) else []
    value = getattr(row, name)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise ValueError(f"quantity {name!r}: must be a numeric field of a row or a metric, not {value!r}")
    if value is None or not 0 <= value <= LARGEST:
        return []
    return [float(value) if value >= SMALLEST else 0.0]
