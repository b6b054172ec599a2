"""Predict the cost of a case from shorter cases of its series, and decide whether to try it at all.

Cases belong to one series if they differ only in n, seed and inputs; cost hardly depends on the last two. Time and
memory are extrapolated from the longest measured length, with the exponent over the three longest; one length alone
predicts nothing. A case without a time of its own is judged by its total CPU time, extrapolated linearly from the two
longest lengths, so that startup cost cancels. Lengths that take very little time predict nothing about lengths that
would take too long, because extrapolation would amplify their noise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.measure.timer import LONG_S, TIMED_S, WARM_S

if TYPE_CHECKING:
    from harness.common.rows import Case, Row, Status

CALLS = 3  # memory pass, timed call, and about as much again for the checks
START_S = 0.5  # starting a child, loading inputs and checking short sequences
BASIS = 3  # lengths used for a prediction; two alone are too noisy
STEEPEST = 2.5  # cap on the extrapolated exponent
LEAST_SHARE = 1e-3  # of the time limit: a shorter call never predicts one that is too long
LEAST_GROWTH, LEAST_GROWTH_S = 0.1, 0.5  # of the time limit, and in seconds, between two whole cases


@dataclass(frozen=True)
class FirstRound:
    """Cost of a case in its first round; None if not measured.

    `time_s` is seconds per call, `busy_s` the seconds for which the whole case kept its threads busy.
    """

    status: Status
    time_s: float | None
    peak_bytes: float | None
    busy_s: float | None


class Forecast:
    """Learns from rows as they arrive. Limits apply to one case; None means no limit."""

    def __init__(self, case_s: float, memory_bytes: float | None) -> None:
        self._case_s, self._memory_bytes = case_s, memory_bytes
        self._series: dict[str, dict[int, FirstRound]] = {}
        self._later_s: dict[str, float] = {}

    def learn(self, row: Row, wall_s: float | None = None, busy_s: float | None = None) -> None:
        """Record a row. `wall_s` is its child's wall time from start to end, `busy_s` its CPU time per thread."""
        if row.round > 0:
            if wall_s is not None:
                self._later_s[row.case.digest()] = wall_s
            return
        peaks = [peak for peak in (row.peak_bytes, row.allocator_bytes) if peak is not None]
        cell = FirstRound(
            row.status, min(row.samples_s) if row.samples_s else row.time_s, max(peaks, default=None), busy_s
        )
        self._series.setdefault(series_key(row.case), {})[row.n] = cell

    def call_s(self, case: Case) -> float | None:
        """Return the predicted seconds per call; None if nothing is known."""
        known = self._known(case)
        return _continued({n: cell.time_s for n, cell in known.items()}, case.n)

    def refusal(self, case: Case) -> str:
        """Return why a case is not worth trying; "" if it is."""
        known = self._known(case)
        for n, cell in sorted(known.items()):
            if n <= case.n and cell.status in ("oom", "timeout"):
                what = "ran out of memory" if cell.status == "oom" else "ran out of time"
                return f"not tried: this series already {what} at {n} tokens"
        return self._too_long(case, known) or self._too_large(case, known)

    def first_s(self, case: Case) -> float:
        """Return the predicted seconds of a case in the first round."""
        return START_S + max(WARM_S + TIMED_S, CALLS * (self.call_s(case) or 0.0))

    def later_s(self, case: Case) -> float:
        """Return the predicted seconds of a case in a later round, from its last round or its time in the first."""
        known = self._later_s.get(case.digest())
        if known is not None:
            return known
        call_s = self.call_s(case) or 0.0
        return START_S + (2 * call_s if call_s > LONG_S else max(WARM_S + TIMED_S, 5 * call_s))

    def _known(self, case: Case) -> dict[int, FirstRound]:
        return self._series.get(series_key(case), {})

    def _too_long(self, case: Case, known: dict[int, FirstRound]) -> str:
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
        """Extrapolate linearly from two lengths; 0 if there are fewer, or if their difference is within the noise."""
        if len(known) < 2:
            return 0.0
        (m1, first), (m2, last) = known
        if last - first < max(LEAST_GROWTH_S, LEAST_GROWTH * self._case_s):
            return 0.0
        return last + (last - first) / (m2 - m1) * (n - m2)

    def _too_large(self, case: Case, known: dict[int, FirstRound]) -> str:
        peaks = {n: cell.peak_bytes for n, cell in known.items()}
        peak = _continued(peaks, case.n)
        if self._memory_bytes is None or peak is None or peak <= self._memory_bytes:
            return ""
        return (
            f"not tried: {_basis(peaks, case.n)} it is predicted to need {peak / 1e9:.3g} GB, more than "
            f"budget.memory_gb, {self._memory_bytes / 1e9:.3g} GB"
        )


def series_key(case: Case) -> str:
    """Return a key that all cases of one series share."""
    return case.model_copy(update={"n": 0, "seed": 0, "inputs": ""}).digest()


def _continued(values: dict[int, float | None], n: int) -> float | None:
    """Return the value at n: measured, or a power law through the longest lengths below n; None if unknown."""
    if values.get(n):
        return values[n]
    known = _below(values, n)
    if len(known) < 2:
        return None
    (m1, first), (m2, last) = known[0], known[-1]
    exponent = math.log(last / first) / math.log(m2 / m1)
    return last * (n / m2) ** min(max(exponent, 0.0), STEEPEST)


def _basis(values: dict[int, float | None], n: int, count: int = BASIS) -> str:
    """Say which lengths a prediction is based on."""
    return f"from {', '.join(str(m) for m, _ in _below(values, n)[-count:])} tokens"


def _below(values: dict[int, float | None], n: int) -> list[tuple[int, float]]:
    """Return the longest lengths below n with a known value, and those values."""
    return [(m, value) for m, value in sorted(values.items()) if value and m < n][-BASIS:]
