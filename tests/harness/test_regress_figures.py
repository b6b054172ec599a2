"""What the regression check promises under noise that was recorded (see record_noise.py); prints its table with -s.

"The same commit twice" is drawn from two recorded sessions, five rounds at each size from either. A change is
planted into one series of the second: an exponent 0.1 higher that leaves the time at the middle size as it was
(the floor does not grow), or everything a fifth slower.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from harness.results.baseline import record_series
from harness.results.machine import Machine
from harness.results.run_file import RunFacts
from harness.results.series import group_series
from harness.stats.comparison import compare
from harness.stats.scaling import fit_scaling
from tests.harness.planted import timed_rows

RECORDED = Path(__file__).parent / "data" / "recorded_noise.json"
FACTS = RunFacts(run="old", machine=Machine(name="box"))
ROUNDS = 5  # as conf.yml has it

Times = dict[int, list[float]]
Planting = Callable[[str, Times], Times]


@cache
def sessions() -> list[dict[str, Times]]:
    data = json.loads(RECORDED.read_text())
    return [
        {name: {int(n): rounds for n, rounds in by_size.items()} for name, by_size in session.items()}
        for session in data["sessions"]
    ]


@cache
def floor_s(name: str) -> float:
    fit = fit_scaling({n: [[time] for time in rounds] for n, rounds in sessions()[0][name].items()}, draws=10)
    return fit.floor_share * fit.values[-1]


def steeper(name: str, times: Times) -> Times:
    middle, floor = sorted(times)[len(times) // 2], floor_s(name)
    return {
        n: [min(time, floor) + max(0, time - floor) * (n / middle) ** 0.1 for time in rounds]
        for n, rounds in times.items()
    }


def slower(name: str, times: Times) -> Times:
    del name
    return {n: [1.2 * time for time in rounds] for n, rounds in times.items()}


def drawn(session: dict[str, Times], rng: np.random.Generator) -> dict[str, Times]:
    return {
        name: {n: list(rng.choice(rounds, ROUNDS, replace=False)) for n, rounds in by_size.items()}
        for name, by_size in session.items()
    }


def verdicts(draws: int, *, seed: int, plant: Planting | None = None) -> dict[str, list[str]]:
    """Operation -> verdict of each draw; with `plant` only of the draws in which it was planted there, by turns."""
    rng = np.random.default_rng(seed)
    operations = list(sessions()[0])
    found: dict[str, list[str]] = {name: [] for name in operations}
    for draw in range(draws):
        before, after = (drawn(sessions()[side], rng) for side in rng.permutation(2))
        planted = operations[draw % len(operations)]
        if plant is not None:
            after[planted] = plant(planted, after[planted])
        old, new = (
            group_series([row for name, times in run.items() for row in timed_rows(times, label=name)])
            for run in (before, after)
        )
        for judgement in compare(record_series(old, FACTS), new, "box"):
            if plant is None or judgement.series.label == planted:
                found[judgement.series.label].append(judgement.verdict)
    return found


def share(found: dict[str, list[str]], verdict: str) -> float:
    every = [one for verdicts in found.values() for one in verdicts]
    return every.count(verdict) / len(every)


def show(title: str, found: dict[str, list[str]]) -> None:
    for name, every in found.items():
        shares = " ".join(
            f"{verdict} {every.count(verdict) / len(every):6.1%}" for verdict in ("pass", "fail", "ambiguous")
        )
        print(f"{title:14} {name:12} {shares}")


def test_a_slower_series_fails_more_often_than_the_same_commit():
    assert share(verdicts(12, seed=1), "fail") <= 0.1
    assert share(verdicts(12, seed=2, plant=slower), "fail") >= 0.7


@pytest.mark.slow
def test_the_same_commit_twice_seldom_fails():
    found = verdicts(500, seed=3)
    show("same commit", found)
    assert share(found, "fail") <= 0.02


@pytest.mark.slow
@pytest.mark.parametrize("plant", [steeper, slower])
def test_a_planted_regression_is_caught(plant: Planting):
    found = verdicts(500, seed=4, plant=plant)
    show(plant.__name__, found)
    assert share(found, "fail") >= 0.9
