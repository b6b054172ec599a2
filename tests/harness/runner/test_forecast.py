"""What longer cases will cost, and which are not tried."""

from __future__ import annotations

import pytest

from harness.runner.forecast import Forecast
from tests.harness.cases import a_case, a_row


def forecast_of(times_s: dict[int, float], peaks: dict[int, float] | None = None) -> Forecast:
    forecast = Forecast(case_s=60.0, memory_bytes=10e9)
    for n, time_s in times_s.items():
        forecast.learn(
            a_row(a_case(n=n), time_s=time_s, samples_s=[time_s], peak_bytes=(peaks or {}).get(n)), wall_s=1.0
        )
    return forecast


def test_time_is_continued_with_the_exponent_over_the_three_longest_lengths() -> None:
    forecast = forecast_of({64: 9.0, 256: 0.25, 1024: 3.0, 2048: 16.0})
    assert forecast.call_s(a_case(n=8192)) == pytest.approx(16.0 * 4**2)
    assert forecast.call_s(a_case(n=1024)) == 3.0


def test_the_fastest_sample_speaks_for_a_case_and_no_exponent_is_too_steep() -> None:
    forecast = Forecast(60.0, None)
    for n, samples_s in ((512, [0.1]), (1024, [9.0, 6.4])):
        forecast.learn(a_row(a_case(n=n), samples_s=samples_s, time_s=8.0))
    assert forecast.call_s(a_case(n=2048)) == pytest.approx(6.4 * 2**2.5)


def test_nothing_is_predicted_from_one_length_or_another_series() -> None:
    forecast = forecast_of({1024: 100.0})
    assert forecast.call_s(a_case(n=2048)) is None
    assert forecast.refusal(a_case(n=2**20)) == ""
    forecast = forecast_of({1024: 10.0, 2048: 40.0})
    assert forecast.refusal(a_case(n=2**20, settings={"bits": 3})) == ""


def test_inputs_and_seed_do_not_part_a_series() -> None:
    forecast = forecast_of({1024: 1.0, 2048: 4.0})
    assert forecast.call_s(a_case(n=4096, inputs="text", seed=9)) == pytest.approx(16.0)


def test_a_case_that_would_take_too_long_is_refused_with_the_prediction() -> None:
    forecast = forecast_of({1024: 1.0, 2048: 4.0})
    assert forecast.refusal(a_case(n=4096)) == ""
    assert forecast.refusal(a_case(n=8192)) == (
        "not tried: from 1024, 2048 tokens a call is predicted to take 64 s, and 3 calls would take more than "
        "budget.case_s, 60 s"
    )


def test_a_case_that_would_need_too_much_memory_is_refused_with_the_prediction() -> None:
    forecast = forecast_of({1024: 0.01, 2048: 0.01}, {1024: 1e9, 2048: 4e9})
    assert forecast.refusal(a_case(n=4096)) == (
        "not tried: from 1024, 2048 tokens it is predicted to need 16 GB, more than budget.memory_gb, 10 GB"
    )


@pytest.mark.parametrize(("status", "message"), [("oom", "ran out of memory"), ("timeout", "ran out of time")])
def test_after_a_failure_longer_ones_of_the_series_are_refused(status: str, message: str) -> None:
    forecast = Forecast(60.0, None)
    forecast.learn(a_row(a_case(n=1024), status=status, time_s=None))
    assert forecast.refusal(a_case(n=2048)) == f"not tried: this series already {message} at 1024 tokens"
    assert forecast.refusal(a_case(n=512)) == ""


@pytest.mark.parametrize("status", ["crash", "wrong", "unsupported", "skipped"])
def test_other_failures_refuse_nothing(status: str) -> None:
    forecast = Forecast(60.0, None)
    forecast.learn(a_row(a_case(n=1024), status=status, time_s=None))
    assert forecast.refusal(a_case(n=2048)) == ""


def untimed(busy_s: dict[int, float], case_s: float = 60.0, wall_s: float = 1.0) -> Forecast:
    """What a series without times has taken: processor seconds by length, and always the same from start to end."""
    forecast = Forecast(case_s, None)
    for n, seconds in busy_s.items():
        forecast.learn(a_row(a_case(n=n), time_s=None, samples_s=None), wall_s, seconds)
    return forecast


def test_what_is_not_timed_is_judged_by_the_whole_case_as_if_that_grew_in_proportion() -> None:
    forecast = untimed({1024: 2.0, 2048: 20.0})
    assert forecast.refusal(a_case(n=4096)) == ""
    assert forecast.refusal(a_case(n=8192)) == (
        "not tried: from 1024, 2048 tokens it is predicted to take at least 128 s, more than budget.case_s, 60 s"
    )


@pytest.mark.parametrize("start_up_s", [0.3, 5.0, 50.0])
def test_what_a_case_takes_to_start_predicts_nothing(start_up_s: float) -> None:
    assert untimed({16: start_up_s}, wall_s=start_up_s).refusal(a_case(n=2**20)) == ""
    assert untimed({16: start_up_s, 32: start_up_s * 1.08}, wall_s=start_up_s).refusal(a_case(n=2**20)) == ""
    assert untimed({16: start_up_s * 3, 32: start_up_s}, wall_s=start_up_s).refusal(a_case(n=2**20)) == ""


def test_a_busy_machine_on_which_a_short_case_waits_predicts_nothing() -> None:
    forecast = Forecast(30.0, None)
    for n, wall_s in ((16, 0.4), (32, 20.0)):
        forecast.learn(a_row(a_case(n=n), time_s=None, samples_s=None), wall_s, 0.3)
    assert forecast.refusal(a_case(n=16384)) == ""


def test_the_noise_of_calls_that_hardly_take_time_predicts_nothing() -> None:
    forecast = forecast_of({16: 2e-5, 32: 1e-4})
    assert (forecast.call_s(a_case(n=16384)) or 0) > 60.0
    assert forecast.refusal(a_case(n=16384)) == ""


def test_a_later_round_costs_what_the_last_one_did() -> None:
    forecast = forecast_of({1024: 3.0})
    assert forecast.later_s(a_case(n=1024)) == pytest.approx(6.5)
    forecast.learn(a_row(a_case(n=1024), round=1), wall_s=2.0)
    assert forecast.later_s(a_case(n=1024)) == 2.0
