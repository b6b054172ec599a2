"""The result of a scaling fit: exponent, law, verdict, and the bootstrap curves for predictions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from harness.results.points import FloatArray
    from harness.stats.growth_laws import Curves

PERCENTILES = (2.5, 97.5)
TOO_FEW = "too few sizes"
FLOOR_DOMINATED = "floor-dominated"


@dataclass(frozen=True)
class HeldOut:
    """A held-out size, the prediction from the other sizes, and the measured value."""

    n: int
    predicted: float
    actual: float
    inside: bool

    @property
    def error(self) -> float:
        """Relative error of the prediction."""
        return self.predicted / self.actual - 1


@dataclass(frozen=True)
class Fit:
    """Growth over `sizes`. Intervals are 95 %; values are in the unit of the samples.

    - `exponent` and `interval` belong to a + c·n^α with α free; `floor_share` is its a / t(n_max).
    - `model` is the law that AICc prefers and `weights` the Akaike weights; `predict` and `residual` (root mean square,
      relative) belong to its curve.
    - `local_exponent` is the plain slope over the last two octaves.
    - `verdict` is "decided", "undecided between X and Y", "floor-dominated" or "too few sizes".
    - `challenge` holds the two largest sizes as predicted from the others, empty below 6 sizes.
    - `sizes` and `values` are all points. Sizes below `from_n` follow another law (see `harness.stats.breakpoints`);
      everything else refers to the sizes from `from_n` on.

    With one size the exponent is NaN.
    """

    exponent: float
    interval: tuple[float, float]
    model: str
    floor_share: float
    local_exponent: float
    local_interval: tuple[float, float]
    verdict: str
    residual: float
    sizes: tuple[int, ...]
    values: tuple[float, ...]
    from_n: int
    weights: dict[str, float]
    challenge: tuple[HeldOut, ...]
    _curve: Curves = field(repr=False, compare=False)
    _draws: tuple[Curves, ...] = field(repr=False, compare=False)

    @property
    def identified(self) -> bool:
        """Whether the exponent describes growth, whichever law is preferred."""
        return self.verdict not in (TOO_FEW, FLOOR_DOMINATED)

    def predict(self, n: float) -> float:
        """Value of the curve at n, also beyond the measured sizes."""
        return float(self.curve_at([n])[0])

    def predict_interval(self, n: float) -> tuple[float, float]:
        """95 % interval of the curve at n, including uncertainty about the law."""
        return interval_of(self.draws_at([n])[:, 0])

    def curve_at(self, sizes: Sequence[float] | FloatArray) -> FloatArray:
        """Values (M,) of the curve at M sizes."""
        return self._curve.at(np.asarray(sizes, dtype=np.float64))[0]

    def draws_at(self, sizes: Sequence[float] | FloatArray) -> FloatArray:
        """Values (draws, M) of the bootstrap curves, each from the law that its own points prefer."""
        at = np.asarray(sizes, dtype=np.float64)
        return np.concatenate([curves.at(at) for curves in self._draws])


def interval_of(values: FloatArray) -> tuple[float, float]:
    """95 % percentile interval of draws."""
    low, high = np.percentile(values, PERCENTILES)
    return float(low), float(high)
