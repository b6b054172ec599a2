"""Measure the seconds of a block or a call as they are: without warm-up, and without waiting for a device.

`harness.measure.timer` takes the samples of a case. This module does not import torch.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Literal

Clock = Literal["wall", "processor"]
"""Wall time, or the processor time of all threads of this process."""


class Elapsed:
    """Seconds since this object was created. Python's garbage collector may run meanwhile."""

    def __init__(self, clock: Clock = "wall") -> None:
        self._clock: Clock = clock
        self._started_s = _now_s(clock)

    def seconds(self) -> float:
        """Return the seconds until now."""
        return _now_s(self._clock) - self._started_s


def seconds_of(call: Callable[[], object], clock: Clock = "wall") -> float:
    """Return the seconds of one call."""
    elapsed = Elapsed(clock)
    call()
    return elapsed.seconds()


def time_in_turns(methods: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Return the wall seconds of each method, one number per round; a round before the first one warms up.

    In each round every method runs once, so that ratios hold on a machine whose speed drifts.
    """
    for method in methods.values():
        method()
    samples_s: dict[str, list[float]] = {name: [] for name in methods}
    for _ in range(rounds):
        for name, method in methods.items():
            samples_s[name].append(seconds_of(method))
    return samples_s


def _now_s(clock: Clock) -> float:
    return time.perf_counter() if clock == "wall" else time.process_time()
