"""Measure how much CPU time other processes take during a measurement."""

from __future__ import annotations

import os
import time

import psutil

_IDLE = ("idle", "iowait", "guest", "guest_nice")  # guest time is already included in `user`


class Load:
    """CPU time used since this object was created."""

    def __init__(self) -> None:
        self._busy_s, self._own_s = _busy_s(), time.process_time()

    def others_s(self) -> float:
        """Return the core-seconds that other processes have used on the cores available to this process.

        The system counts in ticks of usually 10 ms, so the result may be below zero by a few ticks.
        """
        return (_busy_s() - self._busy_s) - (time.process_time() - self._own_s)


def cores() -> list[int]:
    """Return the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def _busy_s() -> float:
    every = psutil.cpu_times(percpu=True)
    taken = (every[core]._asdict() for core in cores() if core < len(every))
    return sum(seconds for one in taken for name, seconds in one.items() if name not in _IDLE)
