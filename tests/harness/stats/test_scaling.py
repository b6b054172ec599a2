from __future__ import annotations

import math

import numpy as np
import pytest

from harness.stats.scaling import fit_scaling
from tests.harness.planted import LAWS, OCTAVES, curve_s, noisy

LENGTHS = (128, 256, 512, *OCTAVES)


def exact_fit(count, sizes=LENGTHS):
    return fit_scaling({n: [[float(count(n))]] for n in sizes})


def planted_fit(law: str, *, floor: float = 0.0, seed: int = 0, **options):
    return fit_scaling(noisy(curve_s(law, floor=floor), np.random.default_rng(seed), **options))


@pytest.mark.parametrize(("law", "exponent"), [("n", 1.0), ("n^1.5", 1.5), ("n^2", 2.0)])
@pytest.mark.parametrize("floor", [0, 4, 32])
def test_a_planted_law_is_found_under_any_floor(law: str, exponent: float, floor: float):
    fit = planted_fit(law, floor=floor, noise=0.01)
    assert fit.exponent == pytest.approx(exponent, abs=0.03)
    assert (fit.model, fit.verdict) == (law, "decided")


def test_n_log_n_has_the_exponent_of_the_nearest_power_law():
    fit = planted_fit("n log n")
    assert fit.exponent == pytest.approx(1.105, abs=0.01)
    assert (fit.model, fit.verdict) == ("n log n", "decided")


def test_two_terms_are_told_from_one_power():
    n = np.array(LENGTHS, dtype=float)
    fit = fit_scaling(noisy(1e-5 * n + 1e-9 * n**2, np.random.default_rng(0), sizes=LENGTHS))
    assert (fit.model, fit.verdict) == ("n + n^2", "decided")


@pytest.mark.parametrize("floor", [0, 4, 32])
def test_the_floor_share_is_that_of_the_largest_size(floor: float):
    truth = curve_s("n", floor=floor)
    assert planted_fit("n", floor=floor).floor_share == pytest.approx(1e-3 * floor / truth[-1], abs=0.02)


def test_counts_of_causal_attention_have_exponent_two_and_no_doubt():
    fit = exact_fit(lambda n: n * (n + 1) // 2)
    assert fit.exponent == pytest.approx(2.0, abs=0.001)
    assert fit.interval[1] - fit.interval[0] < 0.001
    assert (fit.model, fit.verdict) == ("n^2", "decided")


@pytest.mark.parametrize(
    ("count", "exponent", "model"),
    [(lambda n: n * n, 2.0, "n^2"), (lambda n: 64 * n + 10**6, 1.0, "n"), (lambda n: 4096, 0.0, "1")],
)
def test_exact_counts_leave_an_interval_of_nothing(count, exponent: float, model: str):
    fit = exact_fit(count)
    assert (fit.model, fit.verdict) == (model, "decided")
    assert fit.exponent == pytest.approx(exponent, abs=1e-4)
    assert fit.interval == pytest.approx((exponent, exponent), abs=1e-4)


def test_counts_that_agree_in_every_round_are_as_exact_as_one():
    counts = {n: [[float(n * n)]] * 3 for n in LENGTHS}
    assert fit_scaling(counts).interval == pytest.approx((2.0, 2.0), abs=1e-4)


def test_small_sizes_under_another_law_are_left_out_and_named():
    window = 256
    fit = exact_fit(lambda n: min(n, window) * n - min(n, window) * (min(n, window) - 1) // 2)
    assert fit.from_n > 128
    assert fit.exponent == pytest.approx(1.0, abs=0.03)
    assert fit.sizes == LENGTHS


def test_a_small_step_does_not_split_a_curve():
    assert exact_fit(lambda n: 100 * n + (3 * n if n <= 512 else 0)).from_n == 128


def test_a_curve_that_no_law_describes_is_not_decided_though_one_is_far_ahead():
    fit = exact_fit(lambda n: n * n * (5 if n.bit_length() % 2 else 3))
    assert fit.residual > 0.1
    assert fit.weights["n^2"] > 0.9
    assert fit.verdict == "undecided between n^2 and n^a"


def test_only_a_law_with_nine_tenths_of_the_weight_is_decided():
    rng = np.random.default_rng(0)
    fits = [fit_scaling(noisy(curve_s("n log n", floor=32), rng, noise=0.06), draws=10) for _ in range(40)]
    verdicts = {fit.verdict == "decided": fit for fit in fits}
    assert verdicts.keys() == {True, False}
    assert all(max(fit.weights.values()) >= 0.9 for fit in fits if fit.verdict == "decided")


def test_close_laws_in_much_noise_are_undecided_and_named():
    fit = planted_fit("n log n", floor=32, noise=0.15, seed=4)
    assert fit.verdict.startswith("undecided between ")
    assert sum(fit.weights.values()) == pytest.approx(1.0)


def test_a_floor_that_hides_growth_is_called_so():
    assert planted_fit("n", floor=1000).verdict == "floor-dominated"
    assert not planted_fit("n", floor=1000).identified


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
def test_below_six_sizes_there_is_no_verdict_on_growth(count: int):
    truth = curve_s("n^2")[:count]
    fit = fit_scaling(noisy(truth, np.random.default_rng(0), sizes=OCTAVES[:count]))
    assert fit.verdict == "too few sizes"
    assert not fit.identified
    assert math.isnan(fit.exponent) if count == 1 else fit.exponent == pytest.approx(2.0, abs=0.1)


def test_one_round_borrows_noise_and_still_covers():
    fit = planted_fit("n^1.5", floor=4, rounds=1, noise=0.01)
    assert fit.interval[0] < 1.5 < fit.interval[1]
    assert fit.interval[1] - fit.interval[0] > 0.005


def test_one_round_without_visible_noise_is_not_believed_to_a_thousandth():
    fit = fit_scaling(noisy(curve_s("n"), np.random.default_rng(0), rounds=1, noise=0))
    assert fit.interval[1] - fit.interval[0] > 0.004


def test_an_outlier_among_single_rounds_hardly_moves_the_exponent():
    samples = noisy(curve_s("n^1.5"), np.random.default_rng(0), rounds=1, noise=0.01)
    calm = fit_scaling(samples)
    samples[OCTAVES[-3]][0][0] *= 1.4
    assert fit_scaling(samples).exponent == pytest.approx(calm.exponent, abs=0.008)


@pytest.mark.parametrize("seed", [49, 143, 148, 250])
def test_the_interval_covers_downwards_where_there_is_no_floor(seed: int):
    """Seeds whose noise looks like a small floor, which lifts all draws of the exponent above the truth."""
    fit = planted_fit("n", seed=seed)
    assert fit.floor_share > 0
    assert fit.interval[0] <= 1.0


def test_an_outlying_round_hardly_moves_the_exponent():
    samples = noisy(curve_s("n"), np.random.default_rng(0))
    calm = fit_scaling(samples)
    samples[OCTAVES[-1]][0][0] *= 3
    assert fit_scaling(samples).exponent == pytest.approx(calm.exponent, abs=0.01)


def test_more_noise_gives_a_wider_interval():
    calm, wild = (planted_fit("n", noise=noise) for noise in (0.01, 0.1))
    assert wild.interval[1] - wild.interval[0] > 3 * (calm.interval[1] - calm.interval[0])


def test_a_misfit_beyond_the_noise_widens_the_interval():
    bend = np.where(np.arange(len(OCTAVES)) % 2, 1.1, 0.9)
    rng = np.random.default_rng(0)
    straight = fit_scaling(noisy(curve_s("n"), rng, noise=0.003))
    bent = fit_scaling(noisy(curve_s("n") * bend, rng, noise=0.003))
    assert bent.interval[1] - bent.interval[0] > 5 * (straight.interval[1] - straight.interval[0])


def test_the_local_exponent_is_the_slope_over_the_last_two_octaves():
    truth = curve_s("n", floor=32)
    fit = planted_fit("n", floor=32, noise=0.005)
    slope = np.polyfit(np.log(OCTAVES[-3:]), np.log(truth[-3:]), 1)[0]
    assert fit.local_interval[0] < slope < fit.local_interval[1]
    assert fit.local_exponent == pytest.approx(slope, abs=0.02)


@pytest.mark.parametrize("law", LAWS)
def test_predictions_beyond_the_sizes_cover_the_truth(law: str):
    fit = planted_fit(law, floor=4)
    truth = float(curve_s(law, floor=4, sizes=[4 * OCTAVES[-1]])[0])
    low, high = fit.predict_interval(4 * OCTAVES[-1])
    assert low < truth < high
    assert fit.predict(4 * OCTAVES[-1]) == pytest.approx(truth, rel=0.1)


def test_the_two_largest_sizes_are_predicted_by_the_others():
    fit = planted_fit("n", floor=4, noise=0.01)
    assert [held.n for held in fit.challenge] == list(OCTAVES[-2:])
    assert all(held.inside and abs(held.error) < 0.05 for held in fit.challenge)


def test_a_cliff_at_the_end_fails_the_challenge():
    truth = curve_s("n", floor=4)
    truth[-2:] *= 2
    held = fit_scaling(noisy(truth, np.random.default_rng(0), noise=0.01)).challenge
    assert not any(one.inside for one in held)
    assert held[-1].error == pytest.approx(-0.5, abs=0.05)


def test_the_seed_decides_the_draws():
    assert planted_fit("n").interval == planted_fit("n").interval
    samples = noisy(curve_s("n"), np.random.default_rng(0))
    assert fit_scaling(samples, seed=1).interval != fit_scaling(samples, seed=2).interval


def test_zeros_are_below_resolution_and_give_no_point():
    counts = {n: [[float(max(0, n - 512))]] for n in LENGTHS}
    assert fit_scaling(counts).sizes == tuple(n for n in LENGTHS if n > 512)


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ({}, "at least one value above zero"),
        ({128: [[0.0]]}, "at least one value above zero"),
        ({128: [[-1.0]]}, "a value at size 128 must be finite and not negative"),
        ({128: [[math.nan]]}, "a value at size 128 must be finite and not negative"),
        ({0: [[1.0]]}, "size 0 must be at least 1"),
    ],
)
def test_samples_that_cannot_be_fitted_are_refused(samples, message: str):
    with pytest.raises(ValueError, match=message):
        fit_scaling(samples)
