"""One sweep from request to report: configuration, plan, folder, measuring, report, expectations.

What takes long to import is imported when it is needed: a mistake in the configuration must show at once.
"""

from __future__ import annotations

import logging
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from harness.config import Config, load_config
from harness.run_folder import FolderError, RunFolder, new_run, old_run

if TYPE_CHECKING:
    from harness.plan import Planned

DONE, UNMET, UNUSABLE, INTERRUPTED = 0, 1, 2, 130  # exit statuses


@dataclass(frozen=True)
class Request:
    """The command line, one field an argument; `conf` is empty where a resumed run's own is meant."""

    conf: str
    overrides: tuple[str, ...]
    out: str | None
    resume: str | None
    dry_run: bool


def sweep(request: Request) -> int:
    """Do what is asked; returns the exit status. Raises ValueError, with one message, for what cannot be used."""
    started_s = time.monotonic()
    logging.basicConfig(format="%(levelname)s: %(message)s")
    earlier = old_run(request.resume) if request.resume else None
    if earlier and not request.conf and not earlier.config.exists():
        raise FolderError(f"--resume: {earlier.path} was stopped before it noted what to measure; name a configuration")
    conf = earlier.config if earlier and not request.conf else Path(request.conf)
    config = load_config(conf, request.overrides)
    folder = earlier or new_run(config.out if request.out is None else request.out)
    from harness.plan import expand

    planned = expand(config)
    if request.dry_run:
        print(describe(planned))
        return DONE
    from harness.campaign import measure

    folder.make()
    complete = measure(config, planned, folder, _command(request, folder), started_s)
    status = _report(config, folder.path)
    return status if complete else INTERRUPTED


def _command(request: Request, folder: RunFolder) -> str:
    """The command that measures all this again: that of the start, unless resuming has changed what is measured."""
    changed = bool(request.conf or request.overrides)
    before = folder.facts.get("command", "") if request.resume and not changed else ""
    options = [part for override in request.overrides for part in ("--set", override)]
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


def _report(config: Config, folder: Path) -> int:
    """Write the report from the rows, say where it lies, and judge what was expected."""
    from harness.journal import latest, read_rows

    rows = latest(read_rows(folder))
    if not rows:
        print(f"no case was measured, so there is no report; the run is in {folder}", file=sys.stderr)
        return DONE
    from harness.regress import judge_expectations
    from harness.report import write_report

    html, _ = write_report(folder)
    failures = judge_expectations(rows, config.expect)
    for failure in failures:
        print(f"expectation failed: {failure}", file=sys.stderr)
    print(f"report: {html}")
    return UNMET if failures else DONE
