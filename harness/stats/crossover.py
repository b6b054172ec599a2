"""Find the length from which one method is faster than another, and how certain that is.

The two fitted curves are intersected once per bootstrap draw, so the interval reflects the uncertainty of both. A cell
without a time (out of memory, timeout, skipped) never enters a curve, but it bounds how far a method can go.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from harness.results.points import FloatArray
    from harness.results.series import Series
    from harness.stats.fit import Fit

OBSERVED, INTERPOLATED, EXTRAPOLATED = "observed", "interpolated", "extrapolated"
REACH = 4  # how far beyond the largest measured length a crossing is believed: two octaves
STEPS_PER_OCTAVE = 16  # between grid points the ratio of two fits is nearly straight in log-log
UNABLE = ("oom", "timeout", "skipped")


@dataclass(frozen=True)
class Feasible:
    """The `largest` n with a time (None if none), and the smallest failed n above it, with status and reason."""

    largest: int | None
    refused: int | None = None
    status: str = ""
    reason: str = ""


@dataclass(frozen=True)
class Crossover:
    """The length from which `fast` stays faster than `slow`, in tokens.

    `n` is the median over the draws, and `interval` contains 95 % of them; both are infinite if `fast` is not faster by
    `n_max`. `label` is "observed" (both were measured on either side and the measurements agree), "interpolated"
    (between measured lengths, from the curves), "extrapolated" (beyond the measured lengths of one of them) or "never
    up to <n_max>". `below` means that `fast` is faster from the smallest length compared.
    """

    n: float
    interval: tuple[float, float]
    label: str
    n_max: int
    below: bool = False

    def __str__(self) -> str:
        if math.isinf(self.n):
            return self.label
        if self.below:
            return f"at or below {self.n:,.0f} ({self.label})"
        low, high = (f"{end:,.0f}" if math.isfinite(end) else "never" for end in self.interval)
        return f"{self.n:,.0f} [{low}, {high}] ({self.label})"


def feasible(series: Series) -> Feasible:
    """Return how far a series goes; only cells that exceeded memory or time bound it, not wrong or crashed ones."""
    largest = max(series.times(), default=None)
    refused = {n: why for n, why in series.censored().items() if why[0] in UNABLE and n > (largest or 0)}
    if not refused:
        return Feasible(largest)
    smallest = min(refused)
    return Feasible(largest, smallest, *refused[smallest])


def crossover(slow: Fit, fast: Fit, *, n_max: int | None = None) -> Crossover:
    """Find where `fast` becomes and stays faster than `slow`, from the smallest length that both curves describe.

    Curves are extrapolated up to `n_max` (None: four times the largest measured length of either). Raises ValueError if
    `n_max` is not above the smallest common length.
    """
    n_min = max(slow.from_n, fast.from_n)
    n_max = REACH * max(slow.sizes[-1], fast.sizes[-1]) if n_max is None else n_max
    if n_max <= n_min:
        raise ValueError(f"n_max: {n_max} must be above {n_min}, the smallest length that both fits describe")
    grid = np.geomspace(n_min, n_max, 1 + math.ceil(STEPS_PER_OCTAVE * math.log2(n_max / n_min)))
    crossings = _last_crossings(grid, *_paired_log_draws(slow, fast, grid))
    low, middle, high = np.quantile(crossings, (0.025, 0.5, 0.975), method="nearest")
    return Crossover(
        n=float(middle),
        interval=(float(low), float(high)),
        label=_label(slow, fast, float(middle), n_max),
        n_max=n_max,
        below=bool(middle <= n_min),
    )


def _paired_log_draws(slow: Fit, fast: Fit, grid: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return log t of both, (draws, M), paired at random because draws are stored by law and not in order."""
    rng = np.random.default_rng(0)
    drawn = [np.log(fit.draws_at(grid)) for fit in (slow, fast)]
    count = min(map(len, drawn))
    first, second = (rng.permutation(draws)[:count] for draws in drawn)
    return first, second


def _last_crossings(grid: FloatArray, slow: FloatArray, fast: FloatArray) -> FloatArray:
    """For each draw, return the n from which slow - fast stays positive: grid[0] if always, infinity if never."""
    lead = slow - fast
    behind = lead <= 0
    last_behind = len(grid) - 1 - behind[:, ::-1].argmax(axis=1)
    crossings = np.full(len(lead), np.inf)
    crossings[~behind.any(axis=1)] = grid[0]
    rows = np.flatnonzero(behind.any(axis=1) & ~behind[:, -1])
    left = last_behind[rows]
    before, after = lead[rows, left], lead[rows, left + 1]
    share = -before / (after - before)
    logs = np.log(grid)
    crossings[rows] = np.exp(logs[left] + share * (logs[left + 1] - logs[left]))
    return crossings


def _label(slow: Fit, fast: Fit, n: float, n_max: int) -> str:
    if math.isinf(n):
        return f"never up to {n_max}"
    if n > min(slow.sizes[-1], fast.sizes[-1]):
        return EXTRAPOLATED
    return OBSERVED if _seen(slow, fast, n) else INTERPOLATED


def _seen(slow: Fit, fast: Fit, n: float) -> bool:
    """Return whether `fast` is slower below n and faster above at the shared lengths, nearest ones excepted."""
    seconds_slow, seconds_fast = (dict(zip(fit.sizes, fit.values, strict=True)) for fit in (slow, fast))
    shared = sorted(seconds_slow.keys() & seconds_fast.keys())
    faster = {m: seconds_fast[m] < seconds_slow[m] for m in shared}
    below, above = [m for m in shared if m < n], [m for m in shared if m >= n]
    lowest = max(slow.from_n, fast.from_n)
    agrees = all(not faster[m] for m in below[:-1] if m >= lowest) and all(faster[m] for m in above[1:])
    # The measured change of sign must itself be next to n, not merely be consistent with it.
    return bool(agrees and above and (below or n <= lowest) and faster[above[-1]] and not (below and faster[below[0]]))
