"""Estimate how the times of two measurements of one series differ, in level and in growth.

Both come from the ratios new/old at the sizes that both measured. Peculiarities of a machine (a cache that ends at some
n) appear in both and cancel, so the ratios are far more precise than the difference of two fitted exponents. Let s(n)
be the share of the time that is not floor. If the exponent increases by D and the work by a factor e^L, then

    ln(new / old) = F·(1 - s) + L·s + D·s·ln n

where F is the change of the floor; s comes from a joint fit to both measurements. The bootstrap resamples the rounds of
each measurement, widened by the Birge ratio of this line.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import stats

from harness.results.points import FloatArray, Points, measure_points, resample
from harness.stats.growth_laws import fit_power
from harness.stats.scaling import ENOUGH_SIZES, LACK_OF_FIT, floor_dominates

RoundTimes = Mapping[int, Sequence[float]]

# Changes above the margin matter. Two unchanged runs on one machine differ by up to the tolerance.
EXPONENT_MARGIN, EXPONENT_TOLERANCE = 0.05, 0.01
LEVEL_MARGIN, LEVEL_TOLERANCE = 0.10, 0.03
DRAWS = 1000


@dataclass(frozen=True)
class Change:
    """An estimated change, its 95 % interval, its margin, and the p-value of "nothing became worse".

    A change matters if it is above the margin. The change of the level is relative (0.2 means a fifth slower); that of
    the exponent is a difference. "Nothing became worse" means worse by no more than the tolerance of unchanged runs.
    """

    name: Literal["exponent", "level"]
    estimate: float
    interval: tuple[float, float]
    margin: float
    p_value: float

    @property
    def within(self) -> bool:
        """Whether the whole interval is below the margin."""
        return self.interval[1] < self.margin

    @property
    def matters(self) -> bool:
        """Whether the estimate is above the margin."""
        return self.estimate > self.margin


def time_changes(old: RoundTimes, new: RoundTimes, *, seed: int = 0) -> list[Change]:
    """Return the change of the level and, if growth is identified, of the exponent; empty without a shared size.

    `old` and `new` map n to the seconds of each round. The level is the geometric mean over the shared sizes.
    """
    shared = sorted(old.keys() & new.keys())
    if not shared:
        return []
    before, after = (
        measure_points({n: [[time] for time in times[n]] for n in shared}, exact=False) for times in (old, new)
    )
    weights = 1 / (before.error**2 + after.error**2 + LACK_OF_FIT**2)
    middle = _middle(before, after)
    power = fit_power(middle.sizes, np.exp(middle.log_values)[None], weights / weights.mean())
    grows = len(shared) >= ENOUGH_SIZES and not floor_dominates(middle, power)
    work = 1 - power.coefficients[0, 0] / power.at(middle.sizes)[0]
    slope, widen, spare = _line(_design(middle.sizes, work, grows=grows), weights, before, after)
    rng = np.random.default_rng(seed)
    drawn = resample(after, DRAWS, rng, widen=widen) - resample(before, DRAWS, rng, widen=widen)
    ratio = after.log_values - before.log_values
    repeats = sum(logs.size - 1 for points in (before, after) for logs in points.rounds)
    freedom = max(1, repeats, spare)
    level = weights / weights.sum()
    drift = rng.normal(0.0, np.hypot(_shared_error(before, level), _shared_error(after, level)), size=DRAWS)
    changes = [_level_change(float(ratio @ level), drawn @ level + drift, freedom)]
    if grows:
        changes.append(_exponent_change(float(ratio @ slope), drawn @ slope, freedom))
    return changes


def _middle(before: Points, after: Points) -> Points:
    """Merge both measurements into one curve, which separates floor from work."""
    logs = (before.log_values + after.log_values) / 2
    error = np.sqrt(before.error**2 + after.error**2) / 2
    return Points(before.sizes, logs, error, tuple(logs[:, None]), max(before.noise, after.noise), exact=False)


def _design(sizes: FloatArray, work: FloatArray, *, grows: bool) -> FloatArray:
    """Return the columns of the line above, growth last; the floor has one only if it is most of some time."""
    if not grows:
        return np.ones((len(sizes), 1))
    logs = np.log(sizes) - np.log(sizes).mean()
    floor = [1 - work] if (1 - work).max() > 0.5 else []
    return np.stack([*floor, work, work * logs], axis=1)


def _line(design: FloatArray, weights: FloatArray, before: Points, after: Points) -> tuple[FloatArray, float, int]:
    """Solve the line by weighted least squares.

    Returns the vector (K,) that maps log ratios to the last coefficient, the Birge ratio, and the degrees of freedom.
    """
    root = np.sqrt(weights)
    solver = np.linalg.pinv(design * root[:, None]) * root
    ratio = after.log_values - before.log_values
    missed = (ratio - design @ (solver @ ratio)) ** 2 / (before.error**2 + after.error**2)
    spare = len(ratio) - design.shape[1]
    return solver[-1], max(1.0, float(np.sqrt(missed.sum() / spare))) if spare > 0 else 1.0, spare


def _shared_error(points: Points, level: FloatArray) -> float:
    """Standard error of the level from variation that all sizes of a round share, such as a machine's slow minutes.

    `level` (K,) holds the weights of the sizes in the level. Shared variation cancels in growth, and resampling each
    size independently does not capture it. Returns 0 if rounds are incomplete.
    """
    counts = {logs.size for logs in points.rounds}
    (count,) = counts if len(counts) == 1 else (1,)
    if count < 2:
        return 0.0
    shared = level @ (np.stack(points.rounds) - points.log_values[:, None])
    beyond_noise = float(np.var(shared, ddof=1) - count * np.sum((level * points.error) ** 2))
    return float(np.sqrt(max(0.0, beyond_noise) / count))


def _level_change(log_ratio: float, drawn: FloatArray, freedom: int) -> Change:
    p_value = _p_value(log_ratio, drawn, float(np.log1p(LEVEL_TOLERANCE)), freedom)
    return Change("level", float(np.expm1(log_ratio)), _interval(np.expm1(drawn)), LEVEL_MARGIN, p_value)


def _exponent_change(difference: float, drawn: FloatArray, freedom: int) -> Change:
    p_value = _p_value(difference, drawn, EXPONENT_TOLERANCE, freedom)
    return Change("exponent", difference, _interval(drawn), EXPONENT_MARGIN, p_value)


def _interval(drawn: FloatArray) -> tuple[float, float]:
    low, high = np.percentile(drawn, (2.5, 97.5))
    return float(low), float(high)


def _p_value(estimate: float, drawn: FloatArray, tolerance: float, freedom: int) -> float:
    """Return the p-value from Student's t with the spread of the draws, which are too few in the far tail."""
    spread = max(float(drawn.std()), 1e-12)
    return float(stats.t.sf((estimate - tolerance) / spread, freedom))
