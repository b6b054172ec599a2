"""Where a curve changes its law: the small sizes may follow another one, and then say nothing about growth.

A window of 256 keys costs n²/2 up to n = 256 and 256·n from there; no single law fits both, and forcing one
gives linear methods an exponent of 1.15. A split is accepted only where one law misses the points by far and
two laws are better by more than `GAIN` in AICc, all extra parameters and the place of the split paid for.
"""

from __future__ import annotations

import numpy as np

from harness.curves import BASES, fit_law, fit_power
from harness.points import FloatArray, Points
from harness.selection import criterion

GAIN = 6.0
FAR = 0.05  # root mean square relative miss of a single law


def regime_start(points: Points, weights: FloatArray, *, least: int) -> int:
    """Index of the first size of the last regime, 0 without a split; a regime keeps at least `least` sizes."""
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
    """AICc of c·n^α below the split and a + c·n^α from there on."""
    tail = fit_power(sizes[split:], values[:, split:], weights[split:])
    loss, parameters = tail.loss, tail.parameters + 1 + min(split, 2)
    if split > 2:
        loss = loss + fit_power(sizes[:split], values[:, :split], weights[:split], floor=False).loss
    return float(criterion(loss, parameters, len(sizes))[0])
