"""Growth laws and their fits in relative error, vectorised over many curves because a bootstrap fits thousands.

Every law is a floor plus non-negative multiples of basis functions; a fit minimises the sum of w·((y - f) / y)² under
that constraint. Laws of fixed form are solved exactly by trying all sets of terms that may be zero. a + c·n^α is solved
by variable projection: the best a and c follow from α in closed form, so only α is searched, on a grid that narrows
around the best value, which avoids local minima.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from harness.results.points import FloatArray

POWER = "n^a"
BASES: dict[str, tuple[Callable[[FloatArray], FloatArray], ...]] = {
    "1": (),
    "n": (lambda n: n,),
    "n log n": (lambda n: n * np.log(n),),
    "n^1.5": (lambda n: n**1.5,),
    "n^2": (lambda n: n**2,),
    "n + n^2": (lambda n: n, lambda n: n**2),
}
LARGEST_EXPONENT = 4.0
COARSE_STEP = 0.05
ROUNDING = 1e-7
SAME_TERMS = 1e-13  # below this determinant of a unit-diagonal Gram matrix, rounding decides
NARROWINGS = 7  # each divides the step by four, down to 3e-6


@dataclass(frozen=True)
class Curves:
    """B fitted curves of one law.

    `coefficients` (B, p) has the floor first, each term in units of its value at `reference`. `exponent` (B,) is set
    for a + c·n^α and otherwise None; `loss` (B,) is the weighted sum of squared relative errors.
    """

    model: str
    reference: float
    coefficients: FloatArray
    loss: FloatArray
    exponent: FloatArray | None = None

    def at(self, sizes: FloatArray) -> FloatArray:
        """Values (B, M) at M sizes, in the unit of the fitted values."""
        if self.exponent is None:
            return self.coefficients @ _columns(self.model, sizes, self.reference)
        growth = (sizes[None, :] / self.reference) ** self.exponent[:, None]
        return self.coefficients[:, :1] + self.coefficients[:, 1:] * growth

    def take(self, chosen: NDArray[np.intp] | slice) -> Curves:
        """Select curves by index or mask."""
        exponent = None if self.exponent is None else self.exponent[chosen]
        return Curves(self.model, self.reference, self.coefficients[chosen], self.loss[chosen], exponent)

    @property
    def parameters(self) -> int:
        """Number of free parameters as information criteria count them, including the scale of the noise."""
        return self.coefficients.shape[1] + (1 if self.exponent is None else 2)

    @property
    def degenerate(self) -> bool:
        """Whether the first curve has a zero term and so equals a simpler law."""
        return bool((self.coefficients[0, 1:] <= 0).any())


def fit_law(model: str, sizes: FloatArray, values: FloatArray, weights: FloatArray) -> Curves:
    """Fit a law of `BASES` to values (B, K) at sizes (K,) with weights (K,)."""
    reference = float(sizes[-1])
    # In units of each row's smallest value, so that squared reciprocals do not overflow.
    unit = values.min(axis=1, keepdims=True)
    columns = _columns(model, sizes, reference)[None] * (unit / values)[:, None, :]
    gram = np.einsum("bpk,k,bqk->bpq", columns, weights, columns)
    right = columns @ weights
    coefficients = np.zeros(right.shape)
    loss = np.full(len(values), np.inf)
    for terms in _nonempty_subsets(right.shape[1]):
        solution = _solve(gram[:, terms][:, :, terms], right[:, terms])
        candidate = weights.sum() - np.einsum("bp,bp->b", solution, right[:, terms])
        better = (solution >= 0).all(axis=1) & (candidate < loss)
        loss = np.where(better, candidate, loss)
        full = np.zeros(right.shape)
        full[:, terms] = solution
        coefficients = np.where(better[:, None], full, coefficients)
    return Curves(model, reference, coefficients * unit, np.maximum(loss, 0.0))


def fit_power(sizes: FloatArray, values: FloatArray, weights: FloatArray, *, floor: bool = True) -> Curves:
    """Fit a + c·n^α to values (B, K); with `floor` False, a is fixed at zero."""
    reference = float(sizes[-1])
    logs = np.log(sizes / reference)
    rows = np.arange(len(values))
    exponents = np.arange(0.0, LARGEST_EXPONENT + COARSE_STEP / 2, COARSE_STEP)[None]
    step = COARSE_STEP
    unit = values.min(axis=1, keepdims=True)
    shares = unit / values
    best = exponents[0, _profile(exponents, logs, shares, weights, floor)[0].argmin(axis=1)]
    for _ in range(NARROWINGS):
        step /= 4
        exponents = np.clip(best[:, None] + step * np.arange(-4, 5), 0.0, LARGEST_EXPONENT)
        best = exponents[rows, _profile(exponents, logs, shares, weights, floor)[0].argmin(axis=1)]
    loss, coefficients = _profile(best[:, None], logs, shares, weights, floor)
    return Curves(POWER, reference, coefficients[:, 0] * unit, loss[:, 0], best)


def _profile(
    exponents: FloatArray, logs: FloatArray, shares: FloatArray, weights: FloatArray, floor: bool
) -> tuple[FloatArray, FloatArray]:
    """Loss (B, G) and best (a, c) (B, G, 2) per exponent; exponents are (1, G) shared or (B, G) per row.

    `shares` (B, K) is a row's smallest value divided by each of its values; a and c are in units of that smallest
    value.
    """
    growth = np.exp(exponents[..., None] * logs)
    first, second = weights * shares, weights * shares**2
    floor_floor, right_floor = second.sum(axis=1)[:, None], first.sum(axis=1)[:, None]
    floor_power = np.einsum("bk,bgk->bg", second, np.broadcast_to(growth, (len(shares), *growth.shape[1:])))
    power_power = np.einsum("bk,bgk->bg", second, np.broadcast_to(growth**2, (len(shares), *growth.shape[1:])))
    right_power = np.einsum("bk,bgk->bg", first, np.broadcast_to(growth, (len(shares), *growth.shape[1:])))
    determinant = floor_floor * power_power - floor_power**2
    solvable = determinant > 1e-13 * floor_floor * power_power
    safe = np.where(solvable, determinant, 1.0)
    a = (right_floor * power_power - right_power * floor_power) / safe
    c = (floor_floor * right_power - floor_power * right_floor) / safe
    # A negative term is fixed at zero; the other then gets its best value alone.
    without_floor = ~solvable | (a < 0) | (not floor)
    c = np.where(without_floor, right_power / power_power, c)
    a = np.where(without_floor, 0.0, a)
    constant = ~without_floor & (c < 0)
    a = np.where(constant, right_floor / floor_floor, a)
    c = np.where(constant, 0.0, c)
    loss = weights.sum() - a * right_floor - c * right_power
    # Smaller losses are rounding. Equal losses let the smallest exponent win, so a constant gets exponent 0.
    return np.maximum(loss, weights.sum() * ROUNDING**2), np.stack([a, c], axis=-1)


def _columns(model: str, sizes: FloatArray, reference: float) -> FloatArray:
    last = np.array([reference])
    terms = [term(sizes) / term(last) for term in BASES[model]]
    return np.stack([np.ones_like(sizes), *terms])


def _nonempty_subsets(count: int) -> list[list[int]]:
    return [list(terms) for size in range(1, count + 1) for terms in combinations(range(count), size)]


def _solve(gram: FloatArray, right: FloatArray) -> FloatArray:
    """Solve the normal equations (B, p, p), scaled to unit diagonal to keep them well conditioned.

    NaN if the sizes differ so little that the terms cannot be told apart.
    """
    scale = np.sqrt(np.einsum("bpp->bp", gram))
    scaled = gram / scale[:, :, None] / scale[:, None, :]
    distinct = np.linalg.det(scaled) > SAME_TERMS
    safe = np.where(distinct[:, None, None], scaled, np.eye(gram.shape[-1]))
    solution = np.linalg.solve(safe, (right / scale)[..., None])[..., 0] / scale
    return np.where(distinct[:, None], solution, np.nan)
