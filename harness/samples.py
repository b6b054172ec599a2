"""From rows to series: what a fit, a comparison or a table takes as one curve over n.

A series is everything that shares an identity except n and round. Times are used only from cells whose
answer was right in every round; a cell without any such row is censored: never data, kept with its reason.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

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

        Raises ValueError for a name that is a row field but not a number.
        """
        return self._collect(lambda row: _value(row, name))

    def censored(self) -> dict[int, tuple[str, str]]:
        """n -> (status, reason) of the cells that give no data: wrong in any round, or never ok."""
        censored: dict[int, tuple[str, str]] = {}
        for n, rows in self._cells().items():
            wrong = [row for row in rows if row.status == "wrong"]
            if wrong or all(row.status != "ok" for row in rows):
                row = (wrong or rows)[-1]
                censored[n] = (row.status, row.reason)
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


def _shared(row: Row) -> Case:
    return row.case.model_copy(update={"n": 0})


def _timed_samples_s(row: Row) -> list[float]:
    if row.samples_s:
        return list(row.samples_s)
    return [] if row.time_s is None else [row.time_s]


def _value(row: Row, name: str) -> list[float]:
    if name not in Row.model_fields:
        return [row.metrics[name]] if name in row.metrics else []
    value = getattr(row, name)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise ValueError(f"quantity {name!r}: must be a numeric field of a row or a metric, not {value!r}")
    return [] if value is None else [float(value)]
