"""What a sweep tells while it runs."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from harness.runner.progress import Live, PlainLog, summary
from tests.harness.cases import a_case, a_row


def test_a_log_has_a_line_a_case(capsys: pytest.CaptureFixture[str]) -> None:
    log = PlainLog()
    log.round(2, 3)
    log.starts(a_case(), 10.0)
    log.ended(a_row(time_s=0.125))
    log.ended(a_row(status="oom", reason="no room", time_s=None))
    assert capsys.readouterr().err.splitlines() == [
        "round 2 [1/3] right n=256 kernel forward gaussian float32: 0.125 s",
        "round 2 [2/3] right n=256 kernel forward gaussian float32: oom: no room",
    ]


def test_a_terminal_shows_the_running_case_the_time_left_and_failures_as_they_are() -> None:
    out = io.StringIO()
    live = Live(Console(file=out, force_terminal=True, width=140))
    live.round(1, 2)
    live.starts(a_case(label="[red]label"), 125.0)
    live._bar.refresh()
    live.ended(a_row(a_case(label="[red]label"), status="crash", reason="killed [by] SIGSEGV", time_s=None))
    live.round(2, 2)
    live.close()
    shown = out.getvalue()
    assert "about 2 min 05 s left" in shown
    assert "[red]label n=256" in shown
    assert "crash: killed [by] SIGSEGV" in shown


def test_a_case_without_a_clock_is_ok_in_words() -> None:
    assert summary(a_row(time_s=None)) == "right n=256 kernel forward gaussian float32: ok"
