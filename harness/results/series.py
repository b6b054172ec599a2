"""Group rows into series; a series is one curve over n in a fit, a comparison or a table.

Rows belong to one series if they share an identity except for n and round. Times are used only from cells (one n) whose
answer was right in every round. A cell without any such row is censored: it gives no data but keeps its reason. A cell
also counts as censored if all its times are invalid, for example zero from a coarse clock or an edited file.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from harness.common.rows import Case, Row
from harness.results.points import LARGEST, SMALLEST

Samples = dict[int, list[list[float]]]


@dataclass(frozen=True)
class Series:
    """One curve over n. `case` is the shared identity with n = 0; `key` is its digest, stable across runs.

    `rows` has one row per (n, round), sorted by these.
    """

    key: str
    label: str
    case: Case
    rows: list[Row]

    def times(self) -> Samples:
        """Map n to the raw timed samples of each round, in seconds, from cells that are not censored."""
        return self._collect(_timed_samples_s)

    def quantity(self, name: str) -> Samples:
        """Map n to a one-element list per round with the value of `name`, a numeric row field or a metric.

        Non-finite values and negative fields are dropped. Raises ValueError if `name` is a row field that is not a
        number.
        """
        return self._collect(lambda row: _value(row, name))

    def censored(self) -> dict[int, tuple[str, str]]:
        """Map n to (status, reason) for the cells that give no data: wrong in any round, or never ok."""
        censored: dict[int, tuple[str, str]] = {}
        for n, rows in self._cells().items():
            wrong = [row for row in rows if row.status == "wrong"]
            if wrong or all(row.status != "ok" or impossible_time(row) for row in rows):
                row = (wrong or rows)[-1]
                censored[n] = (row.status, row.reason or impossible_time(row))
        return censored

    def measured(self) -> bool:
        """Return whether any cell gives data."""
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
    """Group rows into series, in order of first appearance; the last row per identity and round counts."""
    cells: dict[str, dict[tuple[int, int], Row]] = {}
    for row in rows:
        cells.setdefault(_shared(row).digest(), {})[row.n, row.round] = row
    series = []
    for key, by_cell in cells.items():
        ordered = [by_cell[cell] for cell in sorted(by_cell)]
        series.append(Series(key=key, label=ordered[0].label, case=_shared(ordered[0]), rows=ordered))
    return series


def impossible_time(row: Row) -> str:
    """Return why the time of an ok row is invalid; "" if it is valid or missing."""
    times_s = [*(row.samples_s or ()), *([] if row.time_s is None else [row.time_s])] if row.status == "ok" else []
    strange = next((time_s for time_s in times_s if not SMALLEST <= time_s <= LARGEST), None)
    return "" if strange is None else f"a time of {strange:g} s is implausible and is left out"


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
