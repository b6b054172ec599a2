"""Summarise repeated rounds into one point per size: a robust centre, its standard error, and resampled copies.

Everything is in log units, because timing noise is proportional to the time. A round (one process) is the unit of
repetition: samples within a round are correlated, so a round counts once, by its median.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

SMALLEST, LARGEST = 1e-60, 1e60  # between these values no step of a fit overflows
LARGEST_SIZE = 2**53  # above this, floating point cannot distinguish all sizes
UNREPEATED_NOISE = 0.01  # relative noise assumed if no size was measured twice
NO_NOISE = 1e-6  # below this relative noise a measurement counts as exact
EXACT_ERROR = 1e-9  # used as the error of an exact value where a division needs one
HUBER = 1.5  # in units of the noise; 95 % efficient for clean rounds, and robust to one bad round in three
# The spread at one size is estimated from few rounds, so it is averaged with the spread over all sizes, which counts as
# much as this many rounds beyond the first. Otherwise three rounds that happen to agree would dominate a fit.
POOLED_ROUNDS = 4.0
WILD = 4.0  # deviations are capped at this many times the noise, so that one bad round does not void its size


@dataclass(frozen=True)
class Points:
    """`sizes` (K,) ascending, `log_values` (K,), `error` (K,) their standard error, and `rounds`, K arrays of logs.

    `exact` means that nothing is random: counts, or repetitions that mostly agree to within a millionth.
    """

    sizes: FloatArray
    log_values: FloatArray
    error: FloatArray
    rounds: tuple[FloatArray, ...]
    noise: float
    exact: bool

    def part(self, first: int, last: int | None = None) -> Points:
        """Return the sizes from index `first` up to but not including `last`."""
        return self.take(range(len(self.sizes))[first:last])

    def thinned(self, most: int) -> Points:
        """Return at most `most` sizes, evenly spaced in log n, including the first and the last."""
        if len(self.sizes) <= most:
            return self
        logs = np.log(self.sizes)
        wanted = np.linspace(logs[0], logs[-1], most)
        return self.take(np.unique(np.abs(logs[None] - wanted[:, None]).argmin(axis=1)).tolist())

    def take(self, chosen: Sequence[int]) -> Points:
        """Return the sizes at these indices."""
        at = np.array(chosen, dtype=np.intp)
        return replace(
            self,
            sizes=self.sizes[at],
            log_values=self.log_values[at],
            error=self.error[at],
            rounds=tuple(self.rounds[index] for index in chosen),
        )


def measure_points(samples: Mapping[int, Sequence[Sequence[float]]], *, exact: bool | None = None) -> Points:
    """Build points from {n: [[samples of round 1], [round 2], ...]}.

    With `exact` None, whole numbers that agree between rounds count as exact and anything else as noisy. Zeros are
    below the resolution of the measurement and give no point. Raises ValueError for a size below 1 or above 2**53, for
    a value that is negative or above 1e60, and if no point is left.
    """
    by_size = {n: _round_medians(n, samples[n]) for n in sorted(samples)}
    by_size = {n: medians for n, medians in by_size.items() if medians.size}
    if not by_size:
        raise ValueError("samples: must hold at least one value above zero")
    rounds = tuple(np.log(medians) for medians in by_size.values())
    noise = _pooled_noise(rounds)
    if exact is None:
        exact = all(np.all(medians == np.round(medians[0])) for medians in by_size.values())
    exact = exact or 0 <= noise < NO_NOISE
    noise = UNREPEATED_NOISE if noise < 0 else max(noise, NO_NOISE)
    return Points(
        sizes=np.array(list(by_size), dtype=np.float64),
        log_values=np.array([float(centre(logs, noise)) for logs in rounds]),
        error=np.array([EXACT_ERROR if exact else _standard_error(logs, noise) for logs in rounds]),
        rounds=rounds,
        noise=noise,
        exact=exact,
    )


def centre(logs: FloatArray, noise: float) -> FloatArray:
    """Huber's location estimate along the last axis, for a known scale `noise`."""
    middle = np.median(logs, axis=-1, keepdims=True)
    for _ in range(5):
        distance = np.maximum(np.abs(logs - middle), HUBER * noise)
        weight = HUBER * noise / distance
        middle = (weight * logs).sum(axis=-1, keepdims=True) / weight.sum(axis=-1, keepdims=True)
    return middle[..., 0]


def resample(points: Points, draws: int, rng: np.random.Generator, *, widen: float = 1.0) -> FloatArray:
    """Draw `draws` copies of `log_values`, (draws, K), resampling rounds with replacement independently at each size.

    Three rounds give a poor estimate of their own spread, so the deviations are studentised: scaled to the standard
    error, which borrows from the other sizes, times `widen`. If the rounds at a size do not differ, or there is only
    one, deviations are normal.
    """
    columns = []
    for k, logs in enumerate(points.rounds):
        chosen = rng.integers(logs.size, size=(draws, logs.size))
        deviation = centre(logs[chosen], points.noise) - points.log_values[k]
        spread = float(np.sqrt(np.mean(deviation**2)))
        if points.exact or spread < NO_NOISE:
            deviation, spread = rng.normal(size=draws), 1.0
        columns.append(points.log_values[k] + widen * points.error[k] / spread * deviation)
    return np.clip(np.stack(columns, axis=1), np.log(SMALLEST), np.log(LARGEST))


def _round_medians(n: int, rounds: Sequence[Sequence[float]]) -> FloatArray:
    if n < 1:
        raise ValueError(f"samples: size {n} must be at least 1")
    if n > LARGEST_SIZE:
        raise ValueError(f"samples: size {n} must be at most {LARGEST_SIZE}")
    for value in (value for samples in rounds for value in samples):
        if not 0 <= value <= LARGEST:
            raise ValueError(
                f"samples: a value at size {n} must be finite and not negative, at most {LARGEST:g}, not {value}"
            )
    medians = np.array([np.median(samples) for samples in rounds if len(samples)])
    return medians[medians >= SMALLEST]


def _pooled_noise(rounds: Sequence[FloatArray]) -> float:
    """Estimate the noise of one round from differences between rounds at one size; -1 if no size was repeated."""
    pairs = [np.abs(logs[i] - logs[j]) for logs in rounds for i in range(logs.size) for j in range(i)]
    # The difference of two normal values has sd √2 σ, and half of such differences are below 0.6745 times that.
    return float(np.median(pairs)) / (0.6745 * np.sqrt(2)) if pairs else -1.0


def _standard_error(logs: FloatArray, noise: float) -> float:
    count = logs.size
    if count == 1:
        return max(noise, UNREPEATED_NOISE)
    deviations = np.minimum(np.abs(logs - centre(logs, noise)), WILD * noise)
    variance = (POOLED_ROUNDS * noise**2 + float(np.sum(deviations**2))) / (POOLED_ROUNDS + count - 1)
    return float(np.sqrt(variance / count))
