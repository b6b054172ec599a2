"""What other processes take of the cores."""

from __future__ import annotations

import subprocess
import sys
import time

import psutil

from harness.load import Load, cores

SPIN = "import time\nend = time.monotonic() + {}\nprint(flush=True)\nwhile time.monotonic() < end: pass"


def test_another_process_at_work_is_counted() -> None:
    with subprocess.Popen([sys.executable, "-c", SPIN.format(30)], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()  # it has begun
        load, before = Load(), _cpu_s(other.pid)
        while (taken := _cpu_s(other.pid) - before) < 0.5:
            time.sleep(0.05)
        others_s = load.others_s()
        other.kill()
    assert others_s > taken - 0.1


def test_own_work_is_not_counted() -> None:
    load, busy = Load(), time.process_time()
    while time.process_time() - busy < 0.5:
        pass
    own, others = time.process_time() - busy, load.others_s()
    everything = own + others
    assert others < everything - 0.4  # whatever else runs on this machine meanwhile


def test_there_are_cores() -> None:
    assert len(set(cores())) == len(cores()) >= 1


def _cpu_s(pid: int) -> float:
    used = psutil.Process(pid).cpu_times()
    return used.user + used.system
