"""What else keeps the cores busy while something is measured."""

from __future__ import annotations

import os
import time

import psutil

_IDLE = ("idle", "iowait", "guest", "guest_nice")  # what guests take is in `user` already


class Load:
    """Counts from its making on."""

    def __init__(self) -> None:
        self._busy_s, self._own_s = _busy_s(), time.process_time()

    def others_s(self) -> float:
        """Core seconds that other processes have taken since, on the cores that this one may use.

        The system counts in ticks of usually 10 ms, so this may lie below zero by some of them.
        """
        return (_busy_s() - self._busy_s) - (time.process_time() - self._own_s)


def cores() -> list[int]:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def _busy_s() -> float:
    every = psutil.cpu_times(percpu=True)
    taken = (every[core]._asdict() for core in cores() if core < len(every))
    return sum(seconds for one in taken for name, seconds in one.items() if name not in _IDLE)
