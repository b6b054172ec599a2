"""Time a call: warm up until it is steady, make as many calls per sample as the clock needs, keep every sample.

The two sets of inputs alternate from call to call, so that nothing can be cached. A call of more than a second is timed
once: the checked calls before it were its warm-up, and rounds repeat it.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch

LONG_S = 1.0  # a longer call is timed once per round
SAMPLE_S = 0.01  # minimum duration of a sample
WARM_S = 0.3  # limit for the warm-up
STEADY = 0.05  # steady: a sample gains less than this on the fastest so far
TIMED_S = 0.5  # target amount of timed work
MIN_SAMPLES, MAX_SAMPLES = 3, 15  # number of samples
MOST_SETTLING = 1000  # limit on warm-up samples, whatever the clock says


class Timed(Protocol):
    """What the timer needs: a call, and a way to restore state between samples."""

    def call(self, variant: int) -> Any:
        """Run the work on one of the two sets of inputs."""

    def rewind(self) -> int:
        """Undo what calls have changed; return how many calls may follow."""
        ...


@dataclass(frozen=True)
class Timing:
    """Seconds per call, one number per sample, and the last answer with its variant.

    Samples during which the clock did not advance, or went back, are dropped; there may be none left.
    """

    samples_s: list[float]
    answer: Any
    variant: int


def time_calls(timed: Timed, device: torch.device, first_s: float) -> Timing:
    """Time a call that took about `first_s` when last made, if that was at most `LONG_S`."""
    stopwatch = Stopwatch(timed, device)
    with _no_collection():
        calls = _calls_per_sample(stopwatch, first_s)
        if first_s < WARM_S:
            _settle(stopwatch, calls)
        guess = stopwatch.sample(calls)
        count = min(MAX_SAMPLES, max(MIN_SAMPLES, math.ceil(TIMED_S / (guess * calls)))) if guess > 0 else MAX_SAMPLES
        samples = [guess, *(stopwatch.sample(calls) for _ in range(count - 1))]
    return Timing([sample for sample in samples if sample > 0], stopwatch.answer, stopwatch.variant)


def time_once(call: Callable[[], Any], device: torch.device) -> tuple[Any, float]:
    """Return a call's answer and its seconds."""
    synchronize(device)
    with _no_collection():
        started = time.perf_counter()
        answer = call()
        synchronize(device)
        return answer, time.perf_counter() - started


class Stopwatch:
    """Takes samples of a call and keeps the last answer."""

    def __init__(self, timed: Timed, device: torch.device) -> None:
        self._timed = timed
        self._device = device
        self.answer: Any = None
        self.variant = 1

    def sample(self, calls: int) -> float:
        """Return seconds per call over `calls` calls, or fewer if the state does not allow that many."""
        calls = max(1, min(calls, self._timed.rewind()))
        return self._seconds(calls) / calls

    def _seconds(self, calls: int) -> float:
        if self._device.type == "cuda":
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda.synchronize(self._device)
            begin.record()
            self._repeat(calls)
            end.record()
            torch.cuda.synchronize(self._device)
            return begin.elapsed_time(end) / 1000
        synchronize(self._device)
        started = time.perf_counter()
        self._repeat(calls)
        synchronize(self._device)
        return time.perf_counter() - started

    def _repeat(self, calls: int) -> None:
        for _ in range(calls):
            self.variant = 1 - self.variant
            self.answer = None  # freed first, so that two answers are never held at once
            self.answer = self._timed.call(self.variant)


def synchronize(device: torch.device) -> None:
    """Wait until a device has finished its work; does nothing on the CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def _calls_per_sample(stopwatch: Stopwatch, first_s: float) -> int:
    """Return how many calls last `SAMPLE_S`; an even number if more than one, to weigh both input sets equally."""
    if first_s >= SAMPLE_S:
        return 1
    guess = stopwatch.sample(1)  # the first call included start-up cost
    if guess <= 0:
        return 2  # the clock stands still, and more calls would not help
    return 2 * math.ceil(SAMPLE_S / max(guess, 1e-7) / 2) if guess < SAMPLE_S else 1


def _settle(stopwatch: Stopwatch, calls: int) -> None:
    """Take samples until two in a row are hardly faster than the best before them, or time is up."""
    until = time.perf_counter() + WARM_S
    fastest, steady = stopwatch.sample(calls), 0
    for _ in range(MOST_SETTLING):
        if steady == 2 or time.perf_counter() >= until:
            break
        sample = stopwatch.sample(calls)
        steady = steady + 1 if sample > (1 - STEADY) * fastest else 0
        fastest = min(fastest, sample)


@contextmanager
def _no_collection() -> Iterator[None]:
    """Keep Python's garbage collector from running while the clock runs."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
