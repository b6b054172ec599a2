"""A few of the trials of `benchmarks.interruptions`, which measures many."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from benchmarks.interruptions import Sweep, Trials, processes
from harness.common.deadline import Deadline


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_kills_and_signals_at_random_moments_cost_nothing(tmp_path: Path) -> None:
    trials = Trials(tmp_path, seed=3)
    trials.kills(3)
    for number in (signal.SIGINT, signal.SIGTERM):
        trials.signals(number, 2)
    assert trials.seen == []
    assert trials.counts["killed"] == 3
    assert trials.counts["rows doubled"] == 0


def test_processes_of_a_sweep_are_found_as_long_as_they_run(tmp_path: Path) -> None:
    """Otherwise none would ever be left."""
    sweep = Sweep([str(tmp_path / "absent.yml")])
    sweep.process.send_signal(signal.SIGSTOP)  # it would soon end by itself
    deadline = Deadline(60.0)
    while not processes(sweep.mark):  # the kernel may still be setting up its environment
        assert not deadline.passed()
    sweep.process.send_signal(signal.SIGCONT)
    sweep.end()
    assert sweep.left() == []
