"""Seconds of blocks and calls, in wall time or in the processor time of the process."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from harness.measure.elapsed import Clock, Elapsed, seconds_of

CLOCKS: tuple[Clock, ...] = ("wall", "processor")


@pytest.fixture
def pass_time(monkeypatch: pytest.MonkeyPatch) -> Callable[[Clock, float], None]:
    """Make each clock move only by calling this."""
    now: dict[Clock, float] = dict.fromkeys(CLOCKS, 1000.0)

    def move(clock: Clock, seconds: float) -> None:
        now[clock] += seconds

    monkeypatch.setattr(time, "perf_counter", lambda: now["wall"])
    monkeypatch.setattr(time, "process_time", lambda: now["processor"])
    return move


@pytest.mark.parametrize("clock", CLOCKS)
def test_only_the_chosen_clock_counts(pass_time: Callable[[Clock, float], None], clock: Clock) -> None:
    elapsed = Elapsed(clock)
    pass_time("wall", 3.0)
    pass_time("processor", 5.0)
    expected = 3.0 if clock == "wall" else 5.0
    assert elapsed.seconds() == expected
    pass_time(clock, 0.5)
    assert elapsed.seconds() == expected + 0.5


@pytest.mark.parametrize("clock", CLOCKS)
def test_a_call_is_made_once_and_what_happens_before_it_does_not_count(
    pass_time: Callable[[Clock, float], None], clock: Clock
) -> None:
    pass_time(clock, 7.0)
    calls = []
    assert seconds_of(lambda: calls.append(pass_time(clock, 2.0)), clock) == 2.0
    assert len(calls) == 1


def test_wall_time_is_the_default(pass_time: Callable[[Clock, float], None]) -> None:
    assert seconds_of(lambda: pass_time("processor", 2.0)) == 0.0
    assert seconds_of(lambda: pass_time("wall", 2.0)) == 2.0


def test_sleeping_takes_wall_time_but_no_processor_time() -> None:
    assert seconds_of(lambda: time.sleep(0.3)) >= 0.3
    assert seconds_of(lambda: time.sleep(0.3), "processor") < 0.2
