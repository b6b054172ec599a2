"""Decide which growth law the sizes support, or that they do not decide it.

Laws are compared by AICc with one observation per distinct size (repeats do not make a curve longer). A law with a zero
term equals a simpler law and is excluded. "n^a" and "n + n^2" are also excluded if they differ from a simpler law by
less than `SAME_CURVE` at every size: with α = 1.003 the question "n or n^a" is meaningless, but it would otherwise
dominate the uncertainty. Their weight goes to the law that they repeat.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from harness.results.points import NO_NOISE, SMALLEST, FloatArray
from harness.stats.growth_laws import POWER, Curves

SAME_CURVE = 0.02
DECIDED_WEIGHT = 0.9
DECIDED_DELTA = 2.0
MISFIT = 0.1  # root mean square, relative
REFINEMENTS = ("n + n^2", POWER)


@dataclass(frozen=True)
class Choice:
    """The best law, the runner-up, the Akaike weights of the remaining laws, and whether the best is decided."""

    model: str
    rival: str
    weights: dict[str, float]
    decided: bool


def criterion(loss: FloatArray, parameters: int, sizes: int) -> FloatArray:
    """AICc (B,) from weighted sums of squared relative errors; infinite if there are too few sizes.

    The loss is floored at the rounding error of exact numbers, so that the simpler of two exact laws wins.
    """
    spare = sizes - parameters - 1
    if spare <= 0:
        return np.full(loss.shape, np.inf)
    penalty = 2 * parameters * (1 + (parameters + 1) / spare)
    return sizes * np.log(np.maximum(loss / sizes, NO_NOISE**2)) + penalty


def aicc(curves: Curves, sizes: int) -> FloatArray:
    """AICc of each curve (B,)."""
    return criterion(curves.loss, curves.parameters, sizes)


def choose(fits: Mapping[str, Curves], sizes: FloatArray) -> Choice:
    """Weigh the first curve of each law. A law that misses the points by more than `MISFIT` is never decided."""
    if len(fits) == 1:
        (only,) = fits
        return Choice(only, only, {only: 1.0}, decided=False)
    scores = {name: float(aicc(curves, len(sizes))[0]) for name, curves in fits.items() if not curves.degenerate}
    best = min(scores.values())
    weights = {name: float(np.exp((best - score) / 2)) for name, score in scores.items()}
    total = sum(weights.values())
    weights = {name: weight / total for name, weight in weights.items()}
    for name in REFINEMENTS:
        repeated = _repeated(name, fits, weights, sizes)
        if repeated is not None:
            weights[repeated] += weights.pop(name)
            scores[repeated] = min(scores[repeated], scores.pop(name))
    model, *rivals = sorted(weights, key=lambda name: -weights[name])
    decided = (
        weights[model] >= DECIDED_WEIGHT
        and all(scores[rival] - scores[model] >= DECIDED_DELTA for rival in rivals)
        and fits[model].loss[0] <= len(sizes) * MISFIT**2
    )
    rival = rivals[0] if rivals else POWER
    return Choice(model, rival, {name: weights[name] for name in (model, *rivals)}, decided)


def _repeated(name: str, fits: Mapping[str, Curves], weights: Mapping[str, float], sizes: FloatArray) -> str | None:
    """Return the simpler law from which this refinement differs by less than SAME_CURVE, or the nearest of several."""
    if name not in weights:
        return None
    curve = fits[name].at(sizes)[0]
    bends = {
        other: float(np.abs(curve / np.maximum(fits[other].at(sizes)[0], SMALLEST) - 1).max())
        for other in weights
        if other not in REFINEMENTS
    }
    nearest = min(bends, key=lambda other: bends[other], default=None)
    return nearest if nearest is not None and bends[nearest] < SAME_CURVE else None
