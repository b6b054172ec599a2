"""Fits to samples that nobody would choose: extreme values, sizes that hardly differ, one size, thousands of them."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import pytest

from harness.stats import scaling
from harness.stats.crossover import crossover
from harness.stats.growth_laws import LARGEST_EXPONENT
from harness.stats.scaling import fit_scaling

if TYPE_CHECKING:
    from harness.stats.fit import Fit

Samples = dict[int, list[list[float]]]
LARGEST_SIZE = 2**53


def a_size_list(rng: random.Random) -> list[int]:
    count = rng.choice([1, 2, 3, 4, 5, 6, 7, 9, 12, 13])
    base = rng.choice([1, 7, 100_000, LARGEST_SIZE - count])
    return rng.choice(
        [
            [2 ** (7 + step) for step in range(count)],
            [base + step for step in range(count)],
            sorted({rng.randrange(1, LARGEST_SIZE) for _ in range(count)}),
            sorted({int(10 ** rng.uniform(0, 15)) for _ in range(count)}),
        ]
    )


def a_value(rng: random.Random) -> float:
    return rng.choice([0.0, 5e-324, 1e-60, 1e60, 1.0, 2.0, 3e-9, rng.random(), 10 ** rng.uniform(-60, 60)])


def samples_of(rng: random.Random) -> Samples:
    constant = a_value(rng)
    laws: list[Callable[[int], float]] = [
        lambda n: a_value(rng),
        lambda n: constant,
        lambda n: float(n) ** 2,
        lambda n: 1e-7 * n * math.exp(rng.gauss(0, 0.02)),
        lambda n: 1e-3,
    ]
    law = rng.choice(laws)
    rounds = rng.choice([1, 2, 3, 5])
    return {n: [[law(n) for _ in range(rng.choice([1, 3]))] for _ in range(rounds)] for n in a_size_list(rng)}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("seed", range(8))
def test_any_samples_give_a_fit_or_a_reason(seed: int):
    rng = random.Random(seed)
    fits: list[Fit] = []
    for _ in range(25):
        samples = samples_of(rng)
        if any(value >= 1e-60 for rounds in samples.values() for one in rounds for value in [float(np.median(one))]):
            fits.append(fit_scaling(samples, draws=40))
        else:
            with pytest.raises(ValueError, match="samples: must hold at least one value above zero"):
                fit_scaling(samples)
    for fit in fits:
        if math.isfinite(fit.exponent):
            assert 0 <= fit.interval[0] <= fit.exponent <= fit.interval[1] <= LARGEST_EXPONENT
        else:
            assert len(fit.sizes) == 1
        low, high = fit.predict_interval(2 * fit.sizes[-1])
        assert 0 <= low <= high < math.inf
        assert not math.isnan(crossover(fit, rng.choice(fits)).n)
    assert len(fits) > 15


@pytest.mark.parametrize("base", [100_000, 2**40, LARGEST_SIZE - 9])
@pytest.mark.parametrize("rounds", [1, 2])
def test_sizes_that_hardly_differ_say_nothing_about_growth(base: int, rounds: int):
    fit = fit_scaling({n: [[1e-6 * n * (1 + turn / 100)] for turn in range(rounds)] for n in range(base, base + 9)})
    assert fit.interval == (0.0, LARGEST_EXPONENT)
    assert not fit.identified
    assert fit.predict(base) == pytest.approx(1e-6 * base, rel=0.02)


def test_thousands_of_sizes_are_fitted_by_some_of_them(monkeypatch: pytest.MonkeyPatch):
    fitted: list[int] = []
    real = scaling.fit_power
    monkeypatch.setattr(
        scaling, "fit_power", lambda sizes, *rest, **options: fitted.append(len(sizes)) or real(sizes, *rest, **options)
    )
    fit = fit_scaling({n: [[1e-4 + 1e-7 * n]] for n in range(1, 4000)}, draws=50)
    assert scaling.MOST_SIZES / 2 < max(fitted) <= scaling.MOST_SIZES
    assert (fit.sizes[0], fit.sizes[-1], len(fit.sizes)) == (1, 3999, 3999)
    assert fit.exponent == pytest.approx(1.0, abs=0.02)
    assert fit.interval[1] - fit.interval[0] < 0.1


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ({}, "must hold at least one value above zero"),
        ({8: []}, "must hold at least one value above zero"),
        ({8: [[]]}, "must hold at least one value above zero"),
        ({8: [[0.0]], 16: [[1e-80]]}, "must hold at least one value above zero"),
        ({8: [[-1.0]]}, "a value at size 8 must be finite and not negative, at most 1e\\+60, not -1.0"),
        ({8: [[math.inf]]}, "a value at size 8 must be finite"),
        ({8: [[math.nan]]}, "a value at size 8 must be finite"),
        ({8: [[1e61]]}, "a value at size 8 must be finite"),
        ({0: [[1.0]]}, "size 0 must be at least 1"),
        ({2**53 + 1: [[1.0]]}, f"size {2**53 + 1} must be at most {2**53}"),
        ({10**400: [[1.0]]}, "must be at most"),
    ],
)
def test_what_cannot_be_fitted_is_named(samples: Samples, message: str):
    with pytest.raises(ValueError, match=message):
        fit_scaling(samples)
