"""Signals that end a sweep."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from attentions.common.stopping import SIGNALS
from harness.runner.signals import Interruption

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_raises_nothing_where_it_falls_and_is_heard_at_the_next_check(number: signal.Signals) -> None:
    with Interruption() as interruption:
        interruption.check()
        assert not interruption.asked
        for _ in range(2):
            signal.raise_signal(number)
            assert interruption.asked
            with pytest.raises(KeyboardInterrupt):
                interruption.check()


@pytest.mark.parametrize("number", SIGNALS)
def test_who_waits_is_woken(number: signal.Signals) -> None:
    with Interruption() as interruption:
        assert select.select([interruption], [], [], 0)[0] == []
        signal.raise_signal(number)
        assert select.select([interruption], [], [], 60)[0] == [interruption]


def test_handlers_and_mask_are_put_back() -> None:
    def state() -> tuple[object, ...]:
        return (*map(signal.getsignal, SIGNALS), signal.pthread_sigmask(signal.SIG_BLOCK, ()))

    before = state()
    with Interruption():
        assert state() != before
    assert state() == before


COMMAND = """
import os, signal, sys, threading, time
from attentions.common.stopping import exit_on_signal, run_interruptible
exit_on_signal()
number, when = int(sys.argv[1]), sys.argv[2]
def tell(moment):
    if moment == when:
        os.kill(os.getpid(), number)
tell("before")
from harness.runner.signals import Interruption
def main():
    with Interruption() as interruption:
        threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
        tell("within")
        asked = interruption.asked
    if asked:
        os.kill(os.getpid(), number)  # once more
    tell("behind")
    return 7 if asked else 0
status = run_interruptible(main)
tell("after")
sys.exit(status)
"""


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize(
    ("when", "status", "output"),
    [("before", 130, "interrupted\n"), ("within", 7, ""), ("behind", 130, "interrupted\n"), ("after", 0, "")],
)
def test_a_command_that_polls_decides_itself_how_it_ends(
    number: signal.Signals, when: str, status: int, output: str
) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", COMMAND, str(int(number)), when]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (status, output)
