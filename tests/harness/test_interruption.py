"""Signals that end a sweep."""

from __future__ import annotations

import signal

import pytest

from harness.interruption import SIGNALS, Interruption


class Swallows:
    """A finaliser, in which Python ignores whatever is raised."""

    def __init__(self, number: signal.Signals) -> None:
        self.number = number

    def __del__(self) -> None:
        signal.raise_signal(self.number)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_interrupts_at_once(number: signal.Signals) -> None:
    with pytest.raises(KeyboardInterrupt), Interruption():
        signal.raise_signal(number)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_that_a_finaliser_swallowed_is_remembered(number: signal.Signals) -> None:
    with Interruption() as interruption:
        interruption.check()
        Swallows(number)
        with pytest.raises(KeyboardInterrupt):
            interruption.check()


def test_handlers_are_put_back() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    with Interruption():
        assert [signal.getsignal(number) for number in SIGNALS] != before
    assert [signal.getsignal(number) for number in SIGNALS] == before
