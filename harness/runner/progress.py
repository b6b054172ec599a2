"""Report a sweep's progress: a live bar with the time left on a terminal, one line per case elsewhere."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from harness.common.printing import say

if TYPE_CHECKING:
    from harness.common.rows import Case, Row


class Reporter(Protocol):
    """The interface through which a sweep reports progress."""

    def round(self, number: int, cases: int) -> None:
        """A round begins, counted from 1, with this many cases to measure."""
        ...

    def starts(self, case: Case, left_s: float) -> None:
        """A case begins; the sweep should end in `left_s` seconds."""
        ...

    def ended(self, row: Row) -> None:
        """A case has ended."""
        ...

    def note(self, text: str) -> None:
        """Any other message worth a line."""
        ...

    def close(self) -> None:
        """No more reports follow."""
        ...


def reporter() -> Reporter:
    """Return the reporter that suits standard error."""
    return Live(Console(stderr=True)) if sys.stderr.isatty() else PlainLog()


class PlainLog:
    """One line per case, for files and pipes."""

    def __init__(self) -> None:
        self._round, self._cases, self._done = 0, 0, 0

    def round(self, number: int, cases: int) -> None:
        self._round, self._cases, self._done = number, cases, 0

    def starts(self, case: Case, left_s: float) -> None:
        pass

    def ended(self, row: Row) -> None:
        self._done += 1
        self.note(f"round {self._round} [{self._done}/{self._cases}] {summary(row)}")

    def note(self, text: str) -> None:
        say(text, sys.stderr)

    def close(self) -> None:
        pass


class Live:
    """A progress bar with the running case and the time left; failures are printed above it."""

    def __init__(self, console: Console) -> None:
        left = TextColumn("about {task.fields[left]} left")
        self._bar = Progress(
            TextColumn("round {task.fields[number]}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            left,
            TextColumn("{task.description}", markup=False),
            console=console,
            transient=True,
        )
        self._task: TaskID | None = None
        self._bar.start()

    def round(self, number: int, cases: int) -> None:
        if self._task is not None:
            self._bar.remove_task(self._task)
        self._task = self._bar.add_task("", total=cases, number=number, left="…")

    def starts(self, case: Case, left_s: float) -> None:
        assert self._task is not None, "a case belongs to a round"
        self._bar.update(self._task, description=title(case), left=f"{left_s / 60:.0f} min {left_s % 60:02.0f} s")

    def ended(self, row: Row) -> None:
        assert self._task is not None, "a case belongs to a round"
        self._bar.advance(self._task)
        if row.status != "ok":
            self.note(summary(row))

    def note(self, text: str) -> None:
        self._bar.console.print(text, markup=False, highlight=False)

    def close(self) -> None:
        self._bar.stop()


def title(case: Case) -> str:
    """Describe a case in a few words."""
    return f"{case.label} n={case.n} {case.level} {case.mode} {case.inputs} {case.dtype}"


def summary(row: Row) -> str:
    """Describe an outcome in one line."""
    if row.status != "ok":
        return f"{title(row)}: {row.status}: {row.reason}"
    what = f"{row.time_s:.3g} s" if row.time_s is not None else "ok"
    return f"{title(row)}: {what}"
