"""Time limits count from their start, on the clock that never goes back."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from harness.common.deadline import Deadline, Start


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """The clock: its time may be set."""
    now = {"s": 100.0}
    monkeypatch.setattr(time, "monotonic", lambda: now["s"])
    return now


def test_a_deadline_passes_when_its_time_is_over(at: dict[str, float]) -> None:
    deadline = Deadline(5.0)
    assert (deadline.left_s(), deadline.passed()) == (5.0, False)
    at["s"] = 104.5
    assert (deadline.left_s(), deadline.passed()) == (0.5, False)
    at["s"] = 105.0
    assert (deadline.left_s(), deadline.passed()) == (0.0, True)
    at["s"] = 107.0
    assert (deadline.left_s(), deadline.passed()) == (-2.0, True)


def test_a_deadline_counts_from_an_earlier_start(at: dict[str, float]) -> None:
    start = Start()
    at["s"] = 103.0
    assert Deadline(5.0, start).left_s() == 2.0
    assert Deadline(5.0).left_s() == 5.0


def test_the_system_clock_may_be_set_back(monkeypatch: pytest.MonkeyPatch) -> None:
    deadline = Deadline(0.02)
    monkeypatch.setattr(time, "time", lambda: 0.0)
    assert not deadline.passed()
    time.sleep(0.03)
    assert deadline.passed()


@pytest.mark.parametrize("module", ["harness.common.deadline", "harness.measure.elapsed", "harness.runner.fork_server"])
def test_importing_it_imports_the_standard_library_alone(module: str) -> None:
    """The fork server answers at once only if what it imports before torch is light."""
    code = (
        "import importlib, sys; before = set(sys.modules); importlib.import_module(sys.argv[1])\n"
        "print(*{name.partition('.')[0] for name in set(sys.modules) - before} - set(sys.stdlib_module_names))"
    )
    done = subprocess.run([sys.executable, "-c", code, module], check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["harness"]
