"""What makes an answer wrong, and what does not."""

from __future__ import annotations

import pytest
import torch

from harness.measure import gate
from harness.measure.gate import Ceilings

CEILINGS = Ceilings(flops_per_s=1e9, copy_bytes_per_s=1e9)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_one_number_that_is_not_finite_is_found(value: float) -> None:
    answer = torch.ones(2, 3, 4)
    assert gate.not_finite(answer) == ""
    answer[1, 2, 3] = value
    assert gate.not_finite(answer) == "1 of 24 numbers are not finite"


def test_the_relative_error_is_the_norm_of_the_difference_over_that_of_the_expected() -> None:
    expected = torch.tensor([3.0, 4.0])
    assert gate.relative_error(expected + torch.tensor([0.3, 0.4]), expected) == pytest.approx(0.1)
    assert gate.relative_error(torch.zeros(2), torch.zeros(2)) == 0.0
    assert gate.relative_error(torch.ones(2), torch.zeros(2)) == 1.0


def test_the_relative_error_of_nearly_nothing_is_over_the_least_size() -> None:
    expected = torch.tensor([3.0, 4.0])
    found = expected + torch.tensor([0.3, 0.4])
    assert gate.relative_error(found, expected, 5.0) == gate.relative_error(found, expected)
    assert gate.relative_error(found, expected, 50.0) == pytest.approx(0.01)
    assert gate.relative_error(torch.tensor([1e-9]), torch.zeros(1), 1e-3) == pytest.approx(1e-6)
    assert gate.relative_error(torch.zeros(2), torch.zeros(2), 1.0) == 0.0
    least = gate.least_gradient(8.0, torch.float32, 2e-5)
    assert gate.relative_error(torch.tensor([8 * torch.finfo(torch.float32).eps]), torch.zeros(1), least) == (
        pytest.approx(2e-5)
    )


def test_the_error_per_value_is_measured_in_units_of_the_values() -> None:
    found, expected = torch.full((1, 1, 5, 2), 0.5), torch.zeros(1, 1, 5, 2)
    assert gate.error_per_value(found, expected, torch.full((1, 1, 7, 2), 5.0)) == pytest.approx(0.1)


def test_a_nan_error_is_a_disagreement() -> None:
    assert gate.disagrees(1e-6, 1e-5, "it") == ""
    assert gate.disagrees(1e-4, 1e-5, "its definition") == (
        "differs from its definition by 0.0001 (relative); the limit is 1e-05"
    )
    assert gate.disagrees(float("nan"), 1e-5, "it") != ""


def test_a_leak_in_one_row_of_many_is_found_and_named() -> None:
    before = torch.randn(1, 2, 10_000, 4)
    after = before.clone()
    after[0, 1, 1234] += 0.01
    found = gate.leak(before, after)
    assert found.row == 1234
    assert found.overall < found.worst
    assert gate.leaks(found, tolerance=2e-5).startswith("row 1234 changes by 0.01")


def test_rounding_is_no_leak() -> None:
    before = torch.randn(1, 2, 100, 4)
    assert gate.leaks(gate.leak(before, before * (1 + 1e-6)), tolerance=2e-5) == ""


@pytest.mark.parametrize(
    ("flops", "moved", "message"),
    [
        (1.2e9, 0.0, ""),
        (1.4e9, 0.0, "1.4 GFLOP/s, but the measured maximum is 1"),
        (0.0, 2.9e9, ""),
        (0.0, 3.1e9, "3.1 GB/s, but the measured maximum is 1"),
    ],
)
def test_no_time_beats_the_ceilings_by_more_than_their_margin(flops: float, moved: float, message: str) -> None:
    found = gate.too_fast(1.0, flops, moved, CEILINGS)
    assert found.endswith(message)
    assert bool(found) == bool(message)


def test_small_traffic_may_come_from_a_cache_and_unknown_ceilings_judge_nothing() -> None:
    assert gate.too_fast(1e-6, 0.0, 2**26, CEILINGS) == ""
    assert gate.too_fast(1e-9, 1e12, 1e12, Ceilings(0.0, 0.0)) == ""


def test_the_roofline_is_the_slower_of_computing_and_moving() -> None:
    ceilings = Ceilings(flops_per_s=100.0, copy_bytes_per_s=10.0)
    assert ceilings.least_s(50.0, 10.0) == 1.0
    assert ceilings.least_s(200.0, 10.0) == 2.0
    assert Ceilings(0.0, 0.0).least_s(1.0, 1.0) == 0.0
