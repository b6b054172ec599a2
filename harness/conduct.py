"""One sweep from request to report: configuration, plan, folder, measuring, report, expectations.

What takes long to import is imported when it is needed: a mistake in the configuration must show at once.
"""

from __future__ import annotations

import logging
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from harness.config import Config, ConfigError, load_config
from harness.fork_server import ServerError
from harness.interruption import Interruption
from harness.journal import JournalError
from harness.run_folder import FolderError, RunFolder, new_run, old_run
from harness.say import say

if TYPE_CHECKING:
    from harness.plan import Planned
    from harness.rows import Row

DONE, UNMET, UNUSABLE, INTERRUPTED = 0, 1, 2, 130  # exit statuses


@dataclass(frozen=True)
class Request:
    """The command line, one field an argument; `conf` is empty where a resumed run's own is meant."""

    conf: str
    overrides: tuple[str, ...]
    out: str | None
    resume: str | None
    dry_run: bool
    section: str | None = None


def guarded(command: Callable[[], int]) -> int:
    """A command's exit status; what it cannot use, and being interrupted, is one message on standard error."""
    from harness.disk import unwritable

    try:
        return command()
    except KeyboardInterrupt:
        say("interrupted", sys.stderr)
        return INTERRUPTED
    except (ConfigError, FolderError, JournalError, ServerError) as error:
        say(f"error: {error}", sys.stderr)
        return UNUSABLE
    except OSError as error:
        say(f"error: {unwritable(error, 'the run folder')}", sys.stderr)
        return UNUSABLE


def sweep(request: Request, interruption: Interruption) -> int:
    """Do what is asked; returns the exit status.

    Raises ValueError, with one message, for what cannot be used, and KeyboardInterrupt where a signal comes before
    there is a folder.
    """
    started_s = time.monotonic()
    logging.basicConfig(format="%(levelname)s: %(message)s")
    earlier = old_run(request.resume) if request.resume else None
    if earlier and not request.conf and not earlier.config.exists():
        raise FolderError(f"--resume: {earlier.path} was stopped before it noted what to measure; name a configuration")
    conf = earlier.config if earlier and not request.conf else Path(request.conf)
    config = load_config(conf, request.overrides, request.section)
    folder = earlier or new_run(config.out if request.out is None else request.out)
    from harness.executor import Executor
    from harness.outsiders import make_plan

    interruption.check()
    with Executor(Path(tempfile.gettempdir()), interruption) as executor:
        plan = make_plan(config, executor)
        if request.dry_run:
            say(describe(plan.planned), sys.stdout)
            return DONE
        from harness.campaign import measure

        interruption.check()
        folder.make()
        complete = measure(config, plan, folder, _command(request, folder), started_s, executor, interruption)
    status = _judge(report(folder.path), config)
    return status if complete and not interruption.asked else INTERRUPTED


def _command(request: Request, folder: RunFolder) -> str:
    """The command that measures all this again: that of the start, unless resuming has changed what is measured."""
    changed = bool(request.conf or request.overrides or request.section)
    before = folder.facts.get("command", "") if request.resume and not changed else ""
    options = ["--section", request.section] if request.section else []
    options += [part for override in request.overrides for part in ("--set", override)]
    return before or shlex.join(["python", "-m", "harness.sweep", request.conf or str(folder.config), *options])


def describe(planned: Sequence[Planned]) -> str:
    """The plan in words: a line for each series with its lengths and rounds, and the number of cases."""
    series: dict[str, list[Planned]] = {}
    for one in planned:
        case = one.case
        name = f"{case.label}: {case.subject}, {case.level}, {case.mode}, {case.inputs}, {case.dtype}"
        shape = f"B={case.batch} H={case.heads} G={case.kv_heads} D={case.head_dim} E={case.value_dim}"
        series.setdefault(f"{name}, {shape}{', causal' if case.causal else ''}", []).append(one)
    lines = [
        f"{name}; n = {', '.join(str(one.case.n) for one in group)}; rounds: {max(one.rounds for one in group)}"
        for name, group in series.items()
    ]
    return "\n".join([*lines, f"{len(planned)} cases; nothing was measured or written (--dry-run)"])


def report(folder: Path) -> list[Row]:
    """Write the report from the rows, if there are any, and say where it lies; returns the rows."""
    from harness.journal import latest, read_rows

    rows = latest(read_rows(folder))
    if not rows:
        say(f"no case was measured, so there is no report; the run is in {folder}", sys.stderr)
        return []
    from harness.report import write_report

    html, _ = write_report(folder)
    say(f"report: {html}", sys.stdout)
    return rows


def _judge(rows: Sequence[Row], config: Config) -> int:
    """The exit status that follows from what was expected."""
    from harness.regress import judge_expectations

    failures = judge_expectations(rows, config.expect) if rows else []
    for failure in failures:
        say(f"expectation failed: {failure}", sys.stderr)
    return UNMET if failures else DONE
