"""The clock alternates inputs, repeats short calls, and counts one call as one."""

from __future__ import annotations

import gc
import time

import pytest
import torch

from harness.measure import timer as clock
from harness.measure.timer import time_calls, time_once

CPU = torch.device("cpu")


class Spinning:
    """A call that takes `seconds`, on a clock that only calls move; overhead there is none."""

    def __init__(self, seconds: float, allowed: int = 2**31) -> None:
        self.seconds, self.allowed, self.now = seconds, allowed, 0.0
        self.variants: list[int] = []
        self.since_rewind: list[int] = []
        self.collecting: set[bool] = set()

    def call(self, variant: int) -> int:
        self.variants.append(variant)
        self.since_rewind[-1] += 1
        self.collecting.add(gc.isenabled())
        self.now += self.seconds
        return variant

    def rewind(self) -> int:
        self.since_rewind.append(0)
        return self.allowed

    def perf_counter(self) -> float:
        return self.now


def timed(monkeypatch: pytest.MonkeyPatch, seconds: float, allowed: int = 2**31) -> tuple[clock.Timing, Spinning]:
    spinning = Spinning(seconds, allowed)
    monkeypatch.setattr(clock.time, "perf_counter", spinning.perf_counter)
    return time_calls(spinning, CPU, seconds), spinning


@pytest.mark.parametrize("seconds", [1e-5, 1e-3, 0.02, 0.4, 0.9])
def test_every_sample_is_seconds_a_call_and_there_are_at_least_three(
    monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    timing, _ = timed(monkeypatch, seconds)
    assert len(timing.samples_s) >= clock.MIN_SAMPLES
    assert timing.samples_s == [pytest.approx(seconds)] * len(timing.samples_s)


def test_the_two_sets_of_inputs_alternate_and_the_last_answer_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    timing, spinning = timed(monkeypatch, 1e-3)
    assert all(a != b for a, b in zip(spinning.variants, spinning.variants[1:], strict=False))
    assert timing.answer == timing.variant == spinning.variants[-1]


def test_short_calls_are_repeated_in_a_sample_evenly_for_both_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    _, spinning = timed(monkeypatch, 1e-3)
    assert spinning.since_rewind[-1] == 10
    _, spinning = timed(monkeypatch, 0.02)
    assert spinning.since_rewind[-1] == 1


def test_no_more_calls_follow_a_rewinding_than_it_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    timing, spinning = timed(monkeypatch, 1e-3, allowed=4)
    assert max(spinning.since_rewind) == 4
    assert timing.samples_s[0] == pytest.approx(1e-3)


def test_garbage_is_not_collected_inside_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    _, spinning = timed(monkeypatch, 1e-3)
    assert spinning.collecting == {False}
    assert gc.isenabled()


def test_one_call_is_timed_with_its_answer() -> None:
    answer, seconds = time_once(lambda: time.sleep(0.05) or "answer", CPU)
    assert answer == "answer"
    assert 0.05 <= seconds < 5.0


class Readings:
    """A clock that gains so much a reading, and calls that take nothing of it."""

    def __init__(self, steps: list[float]) -> None:
        self.steps, self.now, self.read = steps, 1e6, 0

    def perf_counter(self) -> float:
        self.now += self.steps[self.read % len(self.steps)]
        self.read += 1
        return self.now

    def call(self, variant: int) -> int:
        return variant

    def rewind(self) -> int:
        return 2**31


@pytest.mark.parametrize("steps", [[0.0], [-1e-3]], ids=["stands still", "goes back"])
def test_a_clock_that_does_not_go_on_takes_no_sample_and_ends(
    monkeypatch: pytest.MonkeyPatch, steps: list[float]
) -> None:
    readings = Readings(steps)
    monkeypatch.setattr(clock.time, "perf_counter", readings.perf_counter)
    timing = time_calls(readings, CPU, 0.0)
    assert timing.samples_s == []
    assert timing.answer == timing.variant


def test_a_sample_during_which_the_clock_went_back_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    readings = Readings([1e-3, 1e-3, 1e-3, 1e-3, -5.0])
    monkeypatch.setattr(clock.time, "perf_counter", readings.perf_counter)
    samples_s = time_calls(readings, CPU, 0.5).samples_s
    assert 0 < len(samples_s) < clock.MAX_SAMPLES
    assert min(samples_s) > 0
