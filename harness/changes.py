"""How the times of two measurements of one series differ: in level and in growth.

Both come from the ratios new/old at the sizes that both have. What is odd about a machine (a cache that ends at
some n) is odd in both and cancels, so the ratios say far more than the difference of two fitted exponents. With
s(n) the share of the time that is not floor, an exponent higher by D and work higher by a factor e^L give
    ln(new / old) = F·(1 - s) + L·s + D·s·ln n
where F is the change of the floor; s comes from a fit to both together. The bootstrap resamples the rounds of
either side, widened by the Birge ratio of this line.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import stats

from harness.curves import fit_power
from harness.points import FloatArray, Points, measure_points, resample
from harness.scaling import ENOUGH_SIZES, LACK_OF_FIT, floor_dominates

RoundTimes = Mapping[int, Sequence[float]]

# A change matters from the margin on. Two sessions on one machine differ by up to the tolerance with nothing changed.
EXPONENT_MARGIN, EXPONENT_TOLERANCE = 0.05, 0.01
LEVEL_MARGIN, LEVEL_TOLERANCE = 0.10, 0.03
DRAWS = 1000


@dataclass(frozen=True)
class Change:
    """An estimated change, its 95 % interval, the margin from which it matters, and p of "nothing became worse".

    The level's change is a relative one, 0.2 for a fifth slower; the exponent's is a difference. Nothing became
    worse means: by no more than two sessions tolerate of each other.
    """

    name: Literal["exponent", "level"]
    estimate: float
    interval: tuple[float, float]
    margin: float
    p_value: float

    @property
    def within(self) -> bool:
        """Whether the whole interval lies below the margin."""
        return self.interval[1] < self.margin

    @property
    def matters(self) -> bool:
        """Whether the estimate lies beyond the margin."""
        return self.estimate > self.margin


def time_changes(old: RoundTimes, new: RoundTimes, *, seed: int = 0) -> list[Change]:
    """Change of the level and, where growth is identified, of the exponent; nothing without a shared size.

    `old` and `new` are n -> seconds of each round. The level is the geometric mean over the shared sizes.
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
    """Both measurements as one curve, which tells floor from work."""
    logs = (before.log_values + after.log_values) / 2
    error = np.sqrt(before.error**2 + after.error**2) / 2
    return Points(before.sizes, logs, error, tuple(logs[:, None]), max(before.noise, after.noise), exact=False)


def _design(sizes: FloatArray, work: FloatArray, *, grows: bool) -> FloatArray:
    """Columns of the line above, growth last; the floor has its own only where it is most of some time."""
    if not grows:
        return np.ones((len(sizes), 1))
    logs = np.log(sizes) - np.log(sizes).mean()
    floor = [1 - work] if (1 - work).max() > 0.5 else []
    return np.stack([*floor, work, work * logs], axis=1)


def _line(design: FloatArray, weights: FloatArray, before: Points, after: Points) -> tuple[FloatArray, float, int]:
    """What turns log ratios into the last coefficient, (K,), the Birge ratio of the line, and what it has to spare."""
    root = np.sqrt(weights)
    solver = np.linalg.pinv(design * root[:, None]) * root
    ratio = after.log_values - before.log_values
    missed = (ratio - design @ (solver @ ratio)) ** 2 / (before.error**2 + after.error**2)
    spare = len(ratio) - design.shape[1]
    return solver[-1], max(1.0, float(np.sqrt(missed.sum() / spare))) if spare > 0 else 1.0, spare


def _shared_error(points: Points, level: FloatArray) -> float:
    """Standard error of the level from what the sizes of a round have in common: a machine's slow or fast minutes.

    `level` (K,) are the weights that make the level. It cancels in growth, and resampling each size by itself does
    not see it. Zero where rounds are not complete.
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
    """Needed far out in the tail, where draws are few: by Student's t with their spread."""
    spread = max(float(drawn.std()), 1e-12)
    return float(stats.t.sf((estimate - tolerance) / spread, freedom))
