"""Measure the seconds of a block or a call as they are: without warm-up, and without waiting for a device.

`harness.measure.timer` takes the samples of a case. This module does not import torch.
"""

from __future__ import annotations

import time
from collections.abc import Callable
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


def _now_s(clock: Clock) -> float:
    return time.perf_counter() if clock == "wall" else time.process_time()
