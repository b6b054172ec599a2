"""What a case will cost, judging by shorter ones of its series, and whether it should be tried at all.

A series is everything that shares an identity but for n, seed and inputs, on which cost hardly depends. Time and
memory are continued from the longest length measured, with the exponent over the three longest; nothing is predicted
from one length. What has no time of its own is judged by the processor time of the whole case, as if that grew by as
much for each further token as between the two longest lengths: what a case takes to start counts for nothing then. A
length that hardly takes any time says nothing of one that would take too much: that would be its noise, continued.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from harness.clock import LONG_S, TIMED_S, WARM_S
from harness.rows import Case, Row, Status

CALLS = 3  # memory pass, timed call, and as much again for the checks
START_S = 0.5  # a child, its inputs and its checks on short sequences
BASIS = 3  # lengths that a prediction rests on: two alone are noisy
STEEPEST = 2.5  # no exponent above this is believed
LEAST_SHARE = 1e-3  # of the time allowed: a call that is shorter predicts none that is too long
LEAST_GROWTH, LEAST_GROWTH_S = 0.1, 0.5  # share of the time allowed, and seconds, by which whole cases must differ


@dataclass(frozen=True)
class Cell:
    """What one case took in its first round: seconds a call, peak bytes, and seconds that all of it kept its threads
    busy; None where not measured."""

    status: Status
    time_s: float | None
    peak_bytes: float | None
    busy_s: float | None


class Forecast:
    """Learns from rows as they come. Limits are those of one case; None for no limit."""

    def __init__(self, case_s: float, memory_bytes: float | None) -> None:
        self._case_s, self._memory_bytes = case_s, memory_bytes
        self._series: dict[str, dict[int, Cell]] = {}
        self._later_s: dict[str, float] = {}

    def learn(self, row: Row, wall_s: float | None = None, busy_s: float | None = None) -> None:
        """Take note of a row; `wall_s` is what its child took from start to end, `busy_s` its threads' computing."""
        if row.round > 0:
            if wall_s is not None:
                self._later_s[row.case.digest()] = wall_s
            return
        peaks = [peak for peak in (row.peak_bytes, row.allocator_bytes) if peak is not None]
        cell = Cell(row.status, min(row.samples_s) if row.samples_s else row.time_s, max(peaks, default=None), busy_s)
        self._series.setdefault(series_key(row.case), {})[row.n] = cell

    def call_s(self, case: Case) -> float | None:
        """Seconds that one call should take; None if nothing is known."""
        known = self._known(case)
        return _continued({n: cell.time_s for n, cell in known.items()}, case.n)

    def refusal(self, case: Case) -> str:
        """Why a case is not worth trying, in words; empty if it is."""
        known = self._known(case)
        for n, cell in sorted(known.items()):
            if n <= case.n and cell.status in ("oom", "timeout"):
                what = "ran out of memory" if cell.status == "oom" else "ran out of time"
                return f"not tried: this series {what} at {n} tokens already"
        return self._too_long(case, known) or self._too_large(case, known)

    def first_s(self, case: Case) -> float:
        """Seconds that a case should take in the first round."""
        return START_S + max(WARM_S + TIMED_S, CALLS * (self.call_s(case) or 0.0))

    def later_s(self, case: Case) -> float:
        """Seconds that a case should take in a later round: as last time, or by its time in the first."""
        known = self._later_s.get(case.digest())
        if known is not None:
            return known
        call_s = self.call_s(case) or 0.0
        return START_S + (2 * call_s if call_s > LONG_S else max(WARM_S + TIMED_S, 5 * call_s))

    def _known(self, case: Case) -> dict[int, Cell]:
        return self._series.get(series_key(case), {})

    def _too_long(self, case: Case, known: dict[int, Cell]) -> str:
        times_s = {n: cell.time_s for n, cell in known.items()}
        call_s = _continued(times_s, case.n)
        longest_s = max((time_s for n, time_s in times_s.items() if time_s and n <= case.n), default=0.0)
        if call_s is not None and CALLS * call_s > self._case_s and longest_s > LEAST_SHARE * self._case_s:
            return (
                f"not tried: {_basis(times_s, case.n)} a call is predicted to take {call_s:.3g} s, and {CALLS} calls "
                f"would take more than budget.case_s, {self._case_s:g} s"
            )
        busy_s = {n: cell.busy_s for n, cell in known.items() if cell.time_s is None}
        whole_s = self._linear(_below(busy_s, case.n)[-2:], case.n)
        if whole_s > self._case_s:
            return (
                f"not tried: {_basis(busy_s, case.n, 2)} it is predicted to take at least {whole_s:.3g} s, more than "
                f"budget.case_s, {self._case_s:g} s"
            )
        return ""

    def _linear(self, known: list[tuple[int, float]], n: int) -> float:
        """The value at n on the line through two lengths; 0 where there are fewer, or they differ by noise alone."""
        if len(known) < 2:
            return 0.0
        (m1, first), (m2, last) = known
        if last - first < max(LEAST_GROWTH_S, LEAST_GROWTH * self._case_s):
            return 0.0
        return last + (last - first) / (m2 - m1) * (n - m2)

    def _too_large(self, case: Case, known: dict[int, Cell]) -> str:
        peaks = {n: cell.peak_bytes for n, cell in known.items()}
        peak = _continued(peaks, case.n)
        if self._memory_bytes is None or peak is None or peak <= self._memory_bytes:
            return ""
        return (
            f"not tried: {_basis(peaks, case.n)} it is predicted to need {peak / 1e9:.3g} GB, more than "
            f"budget.memory_gb, {self._memory_bytes / 1e9:.3g} GB"
        )


def series_key(case: Case) -> str:
    """What cases of one series share."""
    return case.model_copy(update={"n": 0, "seed": 0, "inputs": ""}).digest()


def _continued(values: dict[int, float | None], n: int) -> float | None:
    """The value at n: as measured there, or by a power law from the longest lengths below it; None if unknown."""
    if values.get(n):
        return values[n]
    known = _below(values, n)
    if len(known) < 2:
        return None
    (m1, first), (m2, last) = known[0], known[-1]
    exponent = math.log(last / first) / math.log(m2 / m1)
    return last * (n / m2) ** min(max(exponent, 0.0), STEEPEST)


def _basis(values: dict[int, float | None], n: int, count: int = BASIS) -> str:
    """Which lengths a prediction rests on."""
    return f"from {', '.join(str(m) for m, _ in _below(values, n)[-count:])} tokens"


def _below(values: dict[int, float | None], n: int) -> list[tuple[int, float]]:
    """The longest lengths below n whose value is known, with it."""
    return [(m, value) for m, value in sorted(values.items()) if value and m < n][-BASIS:]
