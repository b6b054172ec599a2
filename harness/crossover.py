"""From which length on one method is faster than another, and how that is known.

Both fitted curves are solved against each other once per bootstrap draw, so the interval holds the doubt about
either curve. A cell without a time (out of memory, timeout, skipped) is no data: it never enters a curve, but it
bounds how far a method can go at all.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from harness.points import FloatArray
from harness.samples import Series
from harness.scaling import Fit

OBSERVED, INTERPOLATED, EXTRAPOLATED = "observed", "interpolated", "extrapolated"
REACH = 4  # how far beyond the largest measured length a crossing is believed: two octaves
STEPS_PER_OCTAVE = 16  # between them the ratio of two fits is all but straight in logarithms
UNABLE = ("oom", "timeout", "skipped")


@dataclass(frozen=True)
class Feasible:
    """`largest` n with a time (None without one), and the smallest n above it without, with status and reason."""

    largest: int | None
    refused: int | None = None
    status: str = ""
    reason: str = ""


@dataclass(frozen=True)
class Crossover:
    """The length from which `fast` stays faster than `slow`, in tokens.

    `n` is the median over the draws and `interval` holds 95 % of them; both are infinite where `fast` is not
    faster by `n_max`. `label` is "observed" (both were measured on either side and the measurements say so),
    "interpolated" (between measured lengths, by the curves), "extrapolated" (beyond what one of them was measured
    at) or "never up to <n_max>". `below` says that `fast` is faster from the smallest length compared.
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
    """How far a series goes; only cells that did not fit into memory or time bound it, not wrong or crashed ones."""
    largest = max(series.times(), default=None)
    refused = {n: why for n, why in series.censored().items() if why[0] in UNABLE and n > (largest or 0)}
    if not refused:
        return Feasible(largest)
    smallest = min(refused)
    return Feasible(largest, smallest, *refused[smallest])


def crossover(slow: Fit, fast: Fit, *, n_max: int | None = None) -> Crossover:
    """Where `fast` becomes and stays faster than `slow`, looked for from the lengths that both curves describe.

    `n_max` (None: four times the largest length measured of either) is as far as curves are believed.
    Raises ValueError for an `n_max` that is not above the smallest length of both.
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
    """log t of both (draws, M), paired at random because draws are stored by law and not by turn."""
    rng = np.random.default_rng(0)
    drawn = [np.log(fit.draws_at(grid)) for fit in (slow, fast)]
    count = min(map(len, drawn))
    first, second = (rng.permutation(draws)[:count] for draws in drawn)
    return first, second


def _last_crossings(grid: FloatArray, slow: FloatArray, fast: FloatArray) -> FloatArray:
    """For each draw the n from which slow - fast stays positive: grid[0] if always, infinity if not at the end."""
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
    """Whether at the shared lengths `fast` is slower below n and faster above, the nearest on either side apart."""
    seconds_slow, seconds_fast = (dict(zip(fit.sizes, fit.values, strict=True)) for fit in (slow, fast))
    shared = sorted(seconds_slow.keys() & seconds_fast.keys())
    faster = {m: seconds_fast[m] < seconds_slow[m] for m in shared}
    below, above = [m for m in shared if m < n], [m for m in shared if m >= n]
    lowest = max(slow.from_n, fast.from_n)
    agrees = all(not faster[m] for m in below[:-1] if m >= lowest) and all(faster[m] for m in above[1:])
    # The measured change of sign must itself lie next to n, not merely be consistent with it.
    return bool(agrees and above and (below or n <= lowest) and faster[above[-1]] and not (below and faster[below[0]]))
