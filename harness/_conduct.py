"""Run one sweep from request to report: configuration, plan, folder, measuring, report, expectations.

What the commands beside this module share; it is no command itself, and private because only they use it. It stands
above the rooms because it uses the runner and the report, which do not know each other.

Slow modules are imported only when needed, so that a mistake in the configuration shows at once.
"""

from __future__ import annotations

import logging
import shlex
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from harness.common.deadline import Start
from harness.common.printing import say
from harness.config.model import Config, load_config
from harness.config.yaml_source import ConfigError
from harness.results.rows_file import JournalError
from harness.results.run_dir import FolderError, RunFolder, new_run, old_run
from harness.runner.fork_server import ServerError

if TYPE_CHECKING:
    from harness.runner.plan import Planned
    from harness.runner.signals import Interruption
    from harness.stats.analysis import Analysis

DONE, UNMET, UNUSABLE, INTERRUPTED = 0, 1, 2, 130  # exit statuses


@dataclass(frozen=True)
class Request:
    """The command line, one field per argument. `conf` is "" if a resumed run's own configuration is used."""

    conf: str
    overrides: tuple[str, ...]
    out: str | None
    resume: str | None
    dry_run: bool
    section: str | None = None


def guarded(module: str, command: Callable[[], int]) -> int:
    """Run a module's command and return its exit status.

    Unusable input and interrupts give one message on standard error, which starts with the command's name.
    """
    from attentions.common.commands import program_name
    from harness.common.io_errors import unwritable

    try:
        return command()
    except KeyboardInterrupt:
        say("interrupted", sys.stderr)
        return INTERRUPTED
    except (ConfigError, FolderError, JournalError, ServerError) as error:
        say(f"{program_name(module)}: {error}", sys.stderr)
        return UNUSABLE
    except OSError as error:
        say(f"{program_name(module)}: {unwritable(error, 'the run folder')}", sys.stderr)
        return UNUSABLE


def sweep(request: Request, interruption: Interruption) -> int:
    """Run the requested sweep; return the exit status.

    Raises ValueError with one message for unusable input, and KeyboardInterrupt if a signal arrives before the folder
    exists.
    """
    started = Start()
    logging.basicConfig(format="%(levelname)s: %(message)s")
    earlier = old_run(request.resume) if request.resume else None
    if earlier and not request.conf and not earlier.config.exists():
        raise FolderError(
            f"--resume: {earlier.path} was stopped before it recorded its configuration; give a configuration"
        )
    conf = earlier.config if earlier and not request.conf else Path(request.conf)
    config = load_config(conf, request.overrides, request.section)
    folder = earlier or new_run(config.out if request.out is None else request.out)
    from harness.runner.executor import Executor
    from harness.runner.external import make_plan

    interruption.check()
    with Executor(Path(tempfile.gettempdir()), interruption) as executor:
        plan = make_plan(config, executor)
        if request.dry_run:
            say(describe(plan.planned), sys.stdout)
            return DONE
        from harness.runner.run import measure

        interruption.check()
        folder.make()
        complete = measure(config, plan, folder, _command(request, folder), started, executor, interruption)
    status = _judge(report(folder.path), config)
    return status if complete and not interruption.asked else INTERRUPTED


def _command(request: Request, folder: RunFolder) -> str:
    """Return the command that repeats the measurement: the original, unless resuming has changed what is measured."""
    changed = bool(request.conf or request.overrides or request.section)
    before = folder.facts.get("command", "") if request.resume and not changed else ""
    options = ["--section", request.section] if request.section else []
    options += [part for override in request.overrides for part in ("--set", override)]
    return before or shlex.join(["python", "-m", "harness.sweep", request.conf or str(folder.config), *options])


def describe(planned: Sequence[Planned]) -> str:
    """Describe the plan: one line per series with its lengths and rounds, and the number of cases."""
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


def report(folder: Path) -> Analysis | None:
    """Write the report from the rows, if there are any, and print its path; return what it was written from."""
    from harness.results.rows_file import latest, read_rows
    from harness.stats.analysis import Analysis

    rows = latest(read_rows(folder))
    if not rows:
        say(f"no case was measured, so there is no report; the run is in {folder}", sys.stderr)
        return None
    from harness.report import write_report

    analysis = Analysis(rows)
    html, _ = write_report(folder, analysis)
    say(f"report: {html}", sys.stdout)
    return analysis


def _judge(analysis: Analysis | None, config: Config) -> int:
    """Return the exit status that follows from the expectations."""
    from harness.stats.expectations import judge_expectations

    failures = judge_expectations(analysis, config.expect) if analysis else []
    for failure in failures:
        say(f"expectation failed: {failure}", sys.stderr)
    return UNMET if failures else DONE
