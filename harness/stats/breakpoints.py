"""Find where a curve changes its growth law, because small sizes may follow another law and say nothing about growth.

A window of 256 keys costs n²/2 up to n = 256 and 256·n beyond; no single law fits both, and forcing one gives linear
methods an exponent of 1.15. A split is accepted only if a single law misses the points by far and two laws are better
by more than `GAIN` in AICc, with a penalty for all extra parameters and for the position of the split.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from harness.stats.growth_laws import BASES, fit_law, fit_power
from harness.stats.model_selection import criterion

if TYPE_CHECKING:
    from harness.results.points import FloatArray, Points

GAIN = 6.0
FAR = 0.05  # root mean square relative misfit of a single law


def regime_start(points: Points, weights: FloatArray, *, least: int) -> int:
    """Return the index of the first size of the last regime, 0 if there is no split.

    A regime has at least `least` sizes.
    """
    sizes, values = points.sizes, np.exp(points.log_values)[None]
    count = len(sizes)
    splits = range(1, count - least + 1)
    if not splits:
        return 0
    laws = [fit_law(model, sizes, values, weights) for model in BASES] + [fit_power(sizes, values, weights)]
    if min(law.loss[0] for law in laws) < count * FAR**2:
        return 0
    single = min(float(criterion(law.loss, law.parameters, count)[0]) for law in laws)
    scores = [_split_score(sizes, values, weights, split) for split in splits]
    best = int(np.argmin(scores))
    return splits[best] if scores[best] < single - GAIN else 0


def _split_score(sizes: FloatArray, values: FloatArray, weights: FloatArray, split: int) -> float:
    """AICc of c·n^α below the split and a + c·n^α from the split on."""
    tail = fit_power(sizes[split:], values[:, split:], weights[split:])
    loss, parameters = tail.loss, tail.parameters + 1 + min(split, 2)
    if split > 2:
        loss = loss + fit_power(sizes[:split], values[:, :split], weights[:split], floor=False).loss
    return float(criterion(loss, parameters, len(sizes))[0])
