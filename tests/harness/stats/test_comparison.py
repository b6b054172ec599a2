from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from harness.results.baseline import record_series
from harness.results.machine import Machine
from harness.results.run_file import RunFacts
from harness.results.series import group_series
from harness.stats.changes import time_changes
from harness.stats.comparison import compare
from tests.harness.planted import OCTAVES, curve_s, timed_rows

SIZES = np.array(OCTAVES, dtype=float)
FACTS = RunFacts(run="old", machine=Machine(name="box"))


def times(
    rng: np.random.Generator,
    *,
    floor: float = 0,
    factor: float = 1,
    rise: float = 0,
    noise: float = 0.03,
    rounds: int = 3,
):
    seconds = factor * (1e-3 * floor + curve_s("n") * (SIZES / SIZES[4]) ** rise)
    noisy = seconds[:, None] * np.exp(noise * rng.standard_normal((len(SIZES), rounds)))
    return {n: list(map(float, one)) for n, one in zip(OCTAVES, noisy, strict=True)}


def changes(before, after):
    return {change.name: change for change in time_changes(before, after)}


def judged(name: str, truth: float, before: dict[str, Any], after: dict[str, Any]) -> tuple[float, float]:
    """Mean error of a change over 30 pairs of runs, and the share of intervals that cover the truth."""
    rng = np.random.default_rng(0)
    found = [changes(times(rng, **before), times(rng, **after))[name] for _ in range(30)]
    covered = [change.interval[0] <= truth <= change.interval[1] for change in found]
    return float(np.mean([change.estimate for change in found])) - truth, float(np.mean(covered))


@pytest.mark.parametrize("floor", [0, 4, 32])
def test_a_change_of_the_exponent_is_measured_whatever_the_floor(floor: float):
    error, covered = judged("exponent", 0.1, {"floor": floor}, {"floor": floor, "rise": 0.1})
    assert abs(error) < 0.015
    assert covered >= 0.8


@pytest.mark.parametrize("rounds", [1, 3])
def test_a_slower_constant_changes_the_level_and_not_the_exponent(rounds: int):
    before = {"floor": 4, "rounds": rounds}
    after = {**before, "factor": 1.2}
    level, level_covered = judged("level", 0.2, before, after)
    exponent, exponent_covered = judged("exponent", 0.0, before, after)
    assert abs(level) < 0.01
    assert abs(exponent) < 0.01
    assert min(level_covered, exponent_covered) >= 0.8


def test_a_floor_that_grew_is_not_taken_for_less_growth():
    error, covered = judged("exponent", 0.0, {"floor": 8}, {"floor": 16})
    assert abs(error) < 0.02
    assert covered >= 0.8


def test_what_is_odd_about_the_machine_cancels():
    rng = np.random.default_rng(0)
    cliff = dict(zip(OCTAVES, np.where(SIZES > 2**14, 2.0, 1.0), strict=True))
    before, after = ({n: [t * cliff[n] for t in one] for n, one in times(rng).items()} for _ in range(2))
    change = changes(before, after)["exponent"]
    assert change.interval[1] - change.interval[0] < 0.04


def test_minutes_in_which_the_whole_machine_was_slow_widen_the_level():
    rng = np.random.default_rng(0)
    covered = []
    for _ in range(30):
        before, after = (times(rng, rounds=5) for _ in range(2))
        for run in (before, after):
            slow = np.exp(0.15 * rng.standard_normal(5))
            run.update({n: list(map(float, slow * one)) for n, one in run.items()})
        low, high = changes(before, after)["level"].interval
        covered.append(low < 0 < high)
    assert np.mean(covered) >= 0.8


def test_hidden_growth_leaves_the_level_alone_to_be_compared():
    rng = np.random.default_rng(0)
    assert changes(times(rng, floor=1000), times(rng, floor=1000)).keys() == {"level"}


def test_only_shared_sizes_count():
    rng = np.random.default_rng(0)
    before, after = times(rng), times(rng, factor=2)
    few = {n: after[n] for n in OCTAVES[:3]}
    assert changes(before, few).keys() == {"level"}
    assert changes({1: [1.0]}, after) == {}


def test_many_noisy_series_seldom_fail_together():
    """Level and exponent of each have a chance of 1 in 40; without a correction half of the runs would fail."""
    rng = np.random.default_rng(0)
    failed_runs = 0
    for _ in range(20):
        names = [str(index) for index in range(16)]
        before = [row for name in names for row in timed_rows(times(rng, noise=0.25), label=name)]
        after = [row for name in names for row in timed_rows(times(rng, noise=0.25, factor=1.03), label=name)]
        judgements = compare(record_series(group_series(before), FACTS), group_series(after), "box")
        failed_runs += any(judgement.verdict == "fail" for judgement in judgements)
    assert failed_runs <= 2
