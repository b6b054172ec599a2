"""Fit how a quantity grows with n, with a floor in the model, calibrated intervals, and verdicts that admit doubt.

`fit_scaling` fits a + c·n^α (a, c >= 0) in relative error. The floor a is part of the model because a log-log slope
mistakes a fixed overhead for slower growth: a linear method with a floor of four times its work at 1K has a slope of
0.73 over 1K-256K with an error bar of 0.007. Intervals come from a bootstrap that resamples rounds at each size,
widened by the Birge ratio if the curve misses the points by more than their noise. For n log n the exponent is that of
the nearest power law: over 1K-256K in octaves, 1.105 without a floor, 1.091 with a floor of 4 times and 1.087 with 32
times the work at 1K (the fitted floor absorbs part of the curvature).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from harness.results.points import SMALLEST, FloatArray, Points, measure_points, resample
from harness.stats.breakpoints import regime_start
from harness.stats.fit import FLOOR_DOMINATED, PERCENTILES, TOO_FEW, Fit, HeldOut, interval_of
from harness.stats.growth_laws import BASES, LARGEST_EXPONENT, POWER, Curves, fit_law, fit_power
from harness.stats.model_selection import Choice, aicc, choose

__all__ = ["PERCENTILES", "Fit", "HeldOut", "fit_points", "fit_scaling", "floor_dominates"]

ENOUGH_SIZES = 6
MOST_SIZES = 64  # more sizes do not improve a fit, and slow down the search for regimes
LEAST_SPAN = 1.01  # largest over smallest size; below this nothing is said about growth
FREE_FLOOR_SIZES = 4  # with three sizes, floor, factor and exponent fit exactly
LACK_OF_FIT = 0.01  # no curve is trusted to describe a machine better than this, so no size outweighs the rest
OUTLIER = 2.5  # in units of the size's error, or of the typical residual if that is larger
CHALLENGE_DRAWS = 200
FIRST = slice(0, 1)  # the points as measured
DRAWS = slice(1, None)


def fit_scaling(
    samples: Mapping[int, Sequence[Sequence[float]]],
    *,
    draws: int = 1000,
    seed: int = 0,
    exact: bool | None = None,
) -> Fit:
    """Fit growth to {n: [[samples of round 1], [round 2], ...]}, in seconds or any other positive quantity.

    Sizes with one round borrow the noise of the others, or 1 % if no size has several. `exact` declares the values to
    be free of noise; None detects this (see `measure_points`). The interval of exact values reflects lack of fit only.
    Zeros give no point. With more than 64 sizes, 64 are fitted, evenly spaced in log n. If the sizes differ by less
    than a hundredth, the interval covers all exponents and the verdict is "too few sizes". Raises ValueError as
    `measure_points` does.
    """
    return fit_points(measure_points(samples, exact=exact), draws=draws, seed=seed)


def fit_points(points: Points, *, draws: int = 1000, seed: int = 0, challenge: bool = True) -> Fit:
    """Like `fit_scaling`, for points already summarised; `challenge` False skips the held-out predictions."""
    whole, points = points, points.thinned(MOST_SIZES)
    start = regime_start(points, _first_weights(points), least=ENOUGH_SIZES)
    points = points.part(start)
    weights, widen = _weigh(points)
    resampled = resample(points, draws, np.random.default_rng(seed), widen=widen)
    values = np.exp(np.concatenate([points.log_values[None], resampled]))
    fits = _fit_laws(points.sizes, values, weights)
    choice = choose({name: curves.take(FIRST) for name, curves in fits.items()}, points.sizes)
    power, curve = fits[POWER], fits[choice.model].take(FIRST)
    slopes = _local_slopes(points.sizes, np.log(values))
    largest = power.take(FIRST).at(points.sizes[-1:])[0, 0]
    return Fit(
        exponent=float(_exponents(power)[0]) if len(points.sizes) > 1 else np.nan,
        interval=_exponent_interval(points.sizes, values, weights, power),
        model=choice.model,
        floor_share=float(power.coefficients[0, 0] / largest),
        local_exponent=float(slopes[0]),
        local_interval=interval_of(slopes[DRAWS]),
        verdict=_verdict(points, power, choice),
        residual=float(np.sqrt(np.mean((curve.at(points.sizes)[0] / values[0] - 1) ** 2))),
        sizes=tuple(int(n) for n in whole.sizes),
        values=tuple(float(value) for value in np.exp(whole.log_values)),
        from_n=int(points.sizes[0]),
        weights=choice.weights,
        challenge=_challenge(points, draws=min(draws, CHALLENGE_DRAWS), seed=seed) if challenge else (),
        _curve=curve,
        _draws=_preferred(fits, len(points.sizes)),
    )


def _first_weights(points: Points) -> FloatArray:
    weights = 1 / (points.error**2 + LACK_OF_FIT**2)
    return weights / weights.mean()


def _weigh(points: Points) -> tuple[FloatArray, float]:
    """Return the weights of the sizes (mean 1) and the Birge ratio, from the residuals of a first fit."""
    sizes, values = points.sizes, np.exp(points.log_values)[None]
    first = _first_weights(points)
    curve = fit_power(sizes, values, first, floor=len(sizes) >= FREE_FLOOR_SIZES)
    residuals = points.log_values - np.log(np.maximum(curve.at(sizes)[0], SMALLEST))
    usual = np.maximum(points.error, 1.4826 * np.median(np.abs(residuals)))
    robust = np.minimum(1.0, OUTLIER * usual / np.maximum(np.abs(residuals), 1e-300))
    spare = len(sizes) - 3
    if spare <= 0:
        return first, 1.0
    missed = float(np.sum(robust * residuals**2)) / spare - float(np.mean(points.error**2))
    weights = robust / (points.error**2 + max(LACK_OF_FIT**2, missed))
    birge = np.sqrt(np.sum(robust * (residuals / points.error) ** 2) / spare)
    return weights / weights.mean(), max(1.0, float(birge))


def _fit_laws(sizes: FloatArray, values: FloatArray, weights: FloatArray) -> dict[str, Curves]:
    """Fit all laws, or only a power law if there are fewer sizes than AICc needs for the largest law."""
    fits = {POWER: fit_power(sizes, values, weights, floor=len(sizes) >= FREE_FLOOR_SIZES)}
    if len(sizes) < ENOUGH_SIZES:
        return fits
    return fits | {model: fit_law(model, sizes, values, weights) for model in BASES}


def _exponent_interval(
    sizes: FloatArray, values: FloatArray, weights: FloatArray, power: Curves
) -> tuple[float, float]:
    """Percentiles of the draws; if these do not exclude a zero floor, the lower end of c·n^α counts too.

    A floor cannot be negative, so if the true floor is zero, noise can only raise it and the exponent with it. The
    plain percentiles would then be too high (their lower end missed the truth in 9 % of cases).
    """
    if len(sizes) < 2:
        return np.nan, np.nan
    if _hardly_differ(sizes):
        return 0.0, LARGEST_EXPONENT
    best, drawn = _exponents(power)[0], _exponents(power)[DRAWS]
    low, high = interval_of(drawn)
    if np.mean(power.coefficients[DRAWS, 0] <= 0) >= PERCENTILES[0] / 100:
        low = min(low, interval_of(_exponents(fit_power(sizes, values[DRAWS], weights, floor=False)))[0])
    return float(min(low, best)), float(max(high, best))


def _exponents(power: Curves) -> FloatArray:
    assert power.exponent is not None
    return power.exponent


def _preferred(fits: Mapping[str, Curves], sizes: int) -> tuple[Curves, ...]:
    """Group the draws by the law with the smallest AICc, without the first curve, which is not a draw."""
    if len(fits) == 1:
        return tuple(curves.take(DRAWS) for curves in fits.values())
    scores = np.stack([aicc(curves, sizes) for curves in fits.values()])
    best = scores.argmin(axis=0)
    best[0] = -1
    return tuple(curves.take(np.flatnonzero(best == i)) for i, curves in enumerate(fits.values()) if (best == i).any())


def _local_slopes(sizes: FloatArray, log_values: FloatArray) -> FloatArray:
    """Least-squares slope of each row over the sizes within two octaves of the largest, at least two sizes."""
    if len(sizes) < 2:
        return np.full(len(log_values), np.nan)
    count = max(2, int((sizes >= sizes[-1] / 4).sum()))
    centred = _centred_logs(sizes[-count:])
    spread = centred @ centred
    return log_values[:, -count:] @ centred / spread if spread > 0 else np.full(len(log_values), np.nan)


def _centred_logs(sizes: FloatArray) -> FloatArray:
    """Centred log n, computed from n relative to the smallest size, to separate sizes whose log n rounds alike."""
    logs = np.log1p((sizes - sizes[0]) / sizes[0])
    return logs - logs.mean()


def _hardly_differ(sizes: FloatArray) -> bool:
    return bool(sizes[-1] < LEAST_SPAN * sizes[0])


def _verdict(points: Points, power: Curves, choice: Choice) -> str:
    if len(points.sizes) < ENOUGH_SIZES or _hardly_differ(points.sizes):
        return TOO_FEW
    if not points.exact and floor_dominates(points, power):
        return FLOOR_DOMINATED
    return "decided" if choice.decided else f"undecided between {choice.model} and {choice.rival}"


def floor_dominates(points: Points, power: Curves) -> bool:
    """Return whether the floor hides growth.

    This is so if the floor is most of t(n_max), t grows by less than a factor of 4, or fewer than three sizes exceed
    twice the floor.
    """
    floor = power.coefficients[0, 0]
    values = power.take(FIRST).at(points.sizes)[0]
    grown = np.exp(points.log_values[-1] - points.log_values[0])
    return bool(floor > 0.5 * values[-1] or grown < 4 or (values - floor > floor).sum() < 3)


def _challenge(points: Points, *, draws: int, seed: int) -> tuple[HeldOut, ...]:
    """Predict the two largest sizes from the others; the band includes the curve's uncertainty and the noise."""
    count = len(points.sizes) - 2
    if count < ENOUGH_SIZES - 2:
        return ()
    rest = fit_points(points.part(0, count), draws=draws, seed=seed, challenge=False)
    rng = np.random.default_rng(seed)
    held = []
    for k in (count, count + 1):
        n, actual = float(points.sizes[k]), float(np.exp(points.log_values[k]))
        noisy = rest.draws_at([n])[:, 0] * np.exp(rng.normal(0, points.error[k], size=draws))
        low, high = interval_of(noisy)
        held.append(HeldOut(int(n), rest.predict(n), actual, low <= actual <= high))
    return tuple(held)
