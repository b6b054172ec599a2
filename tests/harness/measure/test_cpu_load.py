"""What other processes take of the cores."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from typing import NamedTuple

import psutil
import pytest

from harness.measure import cpu_load as load
from harness.measure.cpu_load import Load, cores

SPIN = "import time\nend = time.monotonic() + 60\nprint(flush=True)\nwhile time.monotonic() < end: pass"


class Times(NamedTuple):
    """Seconds of one core since the system's start, some of the kinds that psutil knows."""

    user: float
    system: float
    idle: float
    iowait: float
    guest: float


def test_busy_time_of_the_cores_allowed_less_ones_own_is_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    before = [Times(1.0, 2.0, 3.0, 4.0, 0.5), Times(5.0, 5.0, 5.0, 5.0, 5.0), Times(0.0, 0.0, 9.0, 0.0, 0.0)]
    after = [Times(1.5, 2.25, 8.0, 7.0, 0.75), Times(50.0, 50.0, 5.0, 5.0, 5.0), Times(1.0, 0.0, 9.0, 0.0, 0.0)]
    monkeypatch.setattr(load, "cores", lambda: [0, 2])
    clocks: Iterator[tuple[list[Times], float]] = iter([(before, 10.0), (after, 10.5)])

    def cpu_times(percpu: bool) -> list[Times]:
        assert percpu
        found, own_s = next(clocks)
        monkeypatch.setattr(time, "process_time", lambda: own_s)
        return found

    monkeypatch.setattr(psutil, "cpu_times", cpu_times)
    assert Load().others_s() == pytest.approx(0.5 + 0.25 + 1.0 - 0.5)


def test_another_process_at_work_is_counted() -> None:
    with subprocess.Popen([sys.executable, "-c", SPIN], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()  # it has begun
        counted, spinning = Load(), psutil.Process(other.pid)
        start = spinning.cpu_times().user
        while (taken := spinning.cpu_times().user - start) < 0.5:
            time.sleep(0.05)
        others_s = counted.others_s()
        other.kill()
    assert others_s > taken - 0.1


def test_there_are_cores() -> None:
    assert len(set(cores())) == len(cores()) >= 1
