from __future__ import annotations

import numpy as np
import pytest

from harness.config.model import Expectation
from harness.stats.analysis import Analysis
from harness.stats.expectations import judge_expectations
from tests.harness.planted import OCTAVES, curve_s, noisy, row, timed_rows


def rows_of(law: str, *, floor: float = 0.0, count: int = len(OCTAVES), **fields):
    samples = noisy(curve_s(law, floor=floor), np.random.default_rng(0))
    times = {n: [time for (time,) in rounds] for n, rounds in list(samples.items())[:count]}
    return timed_rows(times, **fields)


def judge(rows, name: str = "planted", **expected):
    return judge_expectations(Analysis(rows), {name: Expectation(**expected)})


def test_growth_within_its_bounds_is_as_expected():
    assert judge(rows_of("n^2"), time_exponent=(1.9, 2.1)) == []


def test_growth_outside_its_bounds_is_a_failure_that_says_which():
    (message,) = judge(rows_of("n^2"), time_exponent=(0.9, 1.15))
    assert message.startswith("planted (kernel, forward, gaussian, float32): time exponent 2.0")
    assert message.endswith("is outside the expected [0.9, 1.15]")


def test_a_bound_inside_the_interval_is_no_failure():
    assert judge(rows_of("n"), time_exponent=(0.5, 0.9999)) == []


@pytest.mark.parametrize("unidentified", [{"floor": 1000}, {"count": 5}])
def test_growth_that_is_not_identified_is_not_judged(unidentified):
    assert judge(rows_of("n"), time_exponent=(0.0, 0.1)) != []
    assert judge(rows_of("n", **unidentified), time_exponent=(0.0, 0.1)) == []


def test_decoding_is_not_judged_by_exponents():
    assert judge(rows_of("n^2", mode="decode"), time_exponent=(0.0, 0.1)) == []


def test_memory_is_the_allocators_where_it_was_traced():
    rows = [row(n, allocator_bytes=n**2, peak_bytes=n) for n in OCTAVES]
    assert judge(rows, memory_exponent=(1.9, 2.1)) == []
    (message,) = judge(rows, memory_exponent=(0.9, 1.1))
    assert "memory exponent 2.000" in message


def test_the_resident_peak_stands_in_for_the_allocator():
    (message,) = judge([row(n, peak_bytes=n**2) for n in OCTAVES], memory_exponent=(0.9, 1.1))
    assert "memory exponent 2.000" in message


def test_the_largest_error_and_leak_over_all_lengths_count():
    rows = [row(128, metrics={"error": 0.1, "leak": 0.0}), row(256, metrics={"error": 0.3, "leak": 1e-3})]
    assert judge(rows, error=0.4, leak=0.01) == []
    assert [message.split(": ")[1] for message in judge(rows, error=0.2, leak=1e-6)] == [
        "error 0.3 at n=256 is above the expected 0.2",
        "leak 0.001 at n=256 is above the expected 1e-06",
    ]


def test_a_backends_name_stands_for_all_its_labels():
    rows = [row(128, label="one", backend="hyper", metrics={"error": 1.0}), row(128, label="two", backend="hyper")]
    assert len(judge(rows, "hyper", error=0.1)) == 1
    assert len(judge(rows, "one", error=0.1)) == 1
    assert judge(rows, "two", error=0.1) == []


def test_what_is_not_in_the_rows_is_not_judged():
    assert judge(rows_of("n"), "absent", time_exponent=(5, 6)) == []
