"""Check rows against the limits in `expect` of the configuration; each failure is one sentence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from harness.stats.analysis import TIME, Analysis

if TYPE_CHECKING:
    from harness.config.model import Expectation
    from harness.results.series import Series


def judge_expectations(analysis: Analysis, expect: Mapping[str, Expectation]) -> list[str]:
    """Return the failures in words, empty if every expectation holds. Keys of `expect` are labels or backend names.

    An exponent fails if its fit is identified and its 95 % interval lies entirely outside the bounds. Memory is the
    allocator's if traced, otherwise the resident peak. In decode mode there is one query whatever n is, so exponents
    are judged in the other modes only. `error` and `leak` fail by their largest value over all n.
    """
    failures = []
    for series in analysis.series:
        for name, expected in expect.items():
            if name in (series.label, series.case.backend):
                failures += [f"{_title(series)}: {reason}" for reason in _failures(analysis, series, expected)]
    return list(dict.fromkeys(failures))


def _failures(analysis: Analysis, series: Series, expected: Expectation) -> list[str]:
    memory = "allocator_bytes" if series.quantity("allocator_bytes") else "peak_bytes"
    judged = [
        _exponent_failure(analysis, series, TIME, "time", expected.time_exponent),
        _exponent_failure(analysis, series, memory, "memory", expected.memory_exponent),
        _largest_failure(series, "error", expected.error),
        _largest_failure(series, "leak", expected.leak),
    ]
    return [reason for reason in judged if reason]


def _exponent_failure(
    analysis: Analysis, series: Series, name: str, title: str, bounds: tuple[float, float] | None
) -> str:
    if bounds is None or series.case.mode == "decode":
        return ""
    fit = analysis.fit(series, name)
    if fit is None or not fit.identified or (fit.interval[0] <= bounds[1] and fit.interval[1] >= bounds[0]):
        return ""
    low, high = fit.interval
    return (
        f"{title} exponent {fit.exponent:.3f}, 95 % interval [{low:.3f}, {high:.3f}], "
        f"is outside the expected [{bounds[0]:g}, {bounds[1]:g}]"
    )


def _largest_failure(series: Series, name: str, limit: float | None) -> str:
    values = {n: max(value for one in rounds for value in one) for n, rounds in series.quantity(name).items()}
    if limit is None or not values:
        return ""
    n = max(values, key=lambda n: values[n])
    return f"{name} {values[n]:.3g} at n={n} is above the expected {limit:g}" if values[n] > limit else ""


def _title(series: Series) -> str:
    case = series.case
    return f"{case.label} ({case.level}, {case.mode}, {case.inputs}, {case.dtype})"
