from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pytest

from harness.results.series import group_series
from harness.stats.crossover import Feasible, crossover, feasible
from harness.stats.scaling import fit_scaling
from tests.harness.planted import OCTAVES, curve_s, noisy, row

if TYPE_CHECKING:
    from harness.stats.fit import Fit


def fit(seconds, *, seed: int, sizes=OCTAVES, noise: float = 0.03) -> Fit:
    return fit_scaling(noisy(np.asarray(seconds), np.random.default_rng(seed), sizes=sizes, noise=noise))


def quadratic(**options) -> Fit:
    return fit(curve_s("n^2"), seed=1, **options)


def test_a_planted_crossover_lies_inside_its_interval_and_is_observed():
    slow, fast = quadratic(), fit(curve_s("n", floor=4) * 10, seed=2)
    truth = 1024 * (5 + math.sqrt(25 + 40))  # x² = 40 + 10·x for x = n / 1024
    found = crossover(slow, fast)
    assert found.interval[0] < truth < found.interval[1]
    assert found.n == pytest.approx(truth, rel=0.05)
    assert (found.label, found.below) == ("observed", False)
    assert str(found).endswith("(observed)")


def test_more_noise_gives_a_wider_interval():
    widths = []
    for noise in (0.01, 0.1):
        found = crossover(quadratic(noise=noise), fit(curve_s("n") * 10, seed=2, noise=noise))
        widths.append(found.interval[1] / found.interval[0])
    assert widths[1] > 1.0 + 3 * (widths[0] - 1.0)


def test_single_rounds_leave_doubt_about_where_curves_cross():
    slow, fast = (
        fit_scaling(noisy(factor * curve_s(law), np.random.default_rng(0), noise=0, rounds=1))
        for law, factor in (("n^2", 1), ("n^1.5", 4))
    )
    low, high = crossover(slow, fast).interval
    assert high > 1.01 * low


def test_between_lengths_that_are_not_shared_it_is_interpolated():
    halves = tuple(n + n // 2 for n in OCTAVES)
    fast = fit(np.array(halves) / 1024 * 1e-2, seed=2, sizes=halves)
    found = crossover(quadratic(), fast)
    assert found.label == "interpolated"
    assert found.n == pytest.approx(10 * 1024, rel=0.1)


def test_beyond_what_the_slow_one_reached_it_is_extrapolated():
    short = OCTAVES[:6]
    slow = fit(curve_s("n^2", sizes=short), seed=1, sizes=short)
    found = crossover(slow, fit(curve_s("n") * 100, seed=2))
    assert found.n == pytest.approx(100 * 1024, rel=0.1)
    assert found.label == "extrapolated"


def test_beyond_two_octaves_no_crossover_is_believed():
    found = crossover(quadratic(), fit(curve_s("n") * 5000, seed=2))
    assert found.n == math.inf
    assert found.interval[1] == math.inf
    assert found.label == str(found) == f"never up to {4 * OCTAVES[-1]}"


def test_n_max_says_how_far_to_look():
    fast = fit(curve_s("n") * 5000, seed=2)
    assert crossover(quadratic(), fast, n_max=2**24).n == pytest.approx(5000 * 1024, rel=0.2)
    with pytest.raises(ValueError, match="n_max: 1024 must be above 1024"):
        crossover(quadratic(), fast, n_max=1024)


def test_one_that_is_faster_from_the_start_crosses_at_or_below_the_first_length():
    found = crossover(quadratic(), fit(curve_s("n") / 10, seed=2))
    assert (found.n, found.below, found.label) == (OCTAVES[0], True, "observed")
    assert "at or below 1,024" in str(found)


def test_equal_methods_do_not_pretend_to_cross():
    found = crossover(fit(curve_s("n"), seed=1), fit(curve_s("n"), seed=2))
    assert found.interval[1] == math.inf


def test_a_measured_lead_that_contradicts_the_curves_is_not_called_observed():
    honest = quadratic()
    truth = curve_s("n") * 10
    truth[5:] *= np.array([1, 8, 1, 1])  # at 64K the fast one was in fact slower
    found = crossover(honest, fit(truth, seed=2))
    assert found.label == "interpolated"


def test_censored_cells_bound_how_far_a_method_goes():
    rows = [row(128, samples_s=[1.0]), row(256, samples_s=[2.0]), row(512, status="oom", reason="8 GB wanted")]
    (series,) = group_series([*rows, row(1024, status="skipped")])
    assert feasible(series) == Feasible(256, 512, "oom", "8 GB wanted")


def test_a_failure_below_the_largest_length_is_no_bound():
    (series,) = group_series([row(128, status="timeout"), row(256, samples_s=[2.0])])
    assert feasible(series) == Feasible(256)


def test_a_wrong_answer_is_no_bound():
    (series,) = group_series([row(128, samples_s=[1.0]), row(256, status="wrong")])
    assert feasible(series) == Feasible(128)


def test_a_method_that_never_ran_has_no_largest_length():
    (series,) = group_series([row(128, status="oom", reason="x")])
    assert feasible(series) == Feasible(None, 128, "oom", "x")
