"""Measure where the time of an attention goes: time each stage that a backend lists, over the lengths of conf.yml.

    python -m harness.profile conf.yml
    python -m harness.profile conf.yml --set 'backends=[lsh_v2]' --set 'lengths=[1024, 4096, 16384]' --out /tmp/run

Backends without stages are skipped. Each stage is timed alone. The whole attention is timed too and passes the usual
gate. The report has a chapter with each stage's share of their sum and its exponent (floor removed), next to what the
backend's authors claim. Exit status as for `harness.sweep`.
"""

from __future__ import annotations

from attentions.common.stopping import exit_on_signal, run_interruptible

if __name__ == "__main__":
    exit_on_signal()  # before the slow imports

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from harness.runner.signals import Interruption

# Everything else is imported later: modules loaded before `exit_on_signal` must be light, so that no signal hits them.
if TYPE_CHECKING:
    import argparse
    from pathlib import Path


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command with these arguments (default: the process's own); return the exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    parsed = _parse(given)
    import shlex
    from pathlib import Path

    from harness._conduct import guarded

    command = shlex.join(["python", "-m", "harness.profile", *given])
    return guarded("harness.profile", lambda: profile(Path(parsed.conf), parsed.overrides, parsed.out, command))


def _parse(given: Sequence[str]) -> argparse.Namespace:
    import argparse

    from attentions.common.commands import program_name

    parser = argparse.ArgumentParser(
        program_name("harness.profile"), description=__doc__.split("\n")[0] if __doc__ else ""
    )
    parser.add_argument("conf", help="configuration; its grid's kernel-level forward cases are profiled")
    parser.add_argument(
        "--out", metavar="DIR", help="output folder for rows and report (default: a new one in reports/runs)"
    )
    parser.add_argument(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="a.b=c",
        help="override a value of the configuration",
    )
    return parser.parse_args(given)


def profile(conf: Path, overrides: Sequence[str], out: str | None, command: str) -> int:
    """Measure, write the report and print its path; return the exit status.

    Raises ValueError with one message for unusable input, and KeyboardInterrupt if a signal arrives before the folder
    exists.
    """
    import tempfile
    from pathlib import Path

    from harness._conduct import DONE, INTERRUPTED, report
    from harness.common.deadline import Start

    started = Start()
    from harness.common.printing import say
    from harness.config.model import load_config
    from harness.config.yaml_source import ConfigError
    from harness.results.run_dir import new_run
    from harness.runner.executor import Executor
    from harness.runner.external import make_plan
    from harness.runner.run import measure

    with Interruption() as interruption, Executor(Path(tempfile.gettempdir()), interruption) as executor:
        config = load_config(conf, overrides)
        interruption.check()
        plan = make_plan(config, executor, stages=True)
        if not plan.planned:
            raise ConfigError(["no backend in this configuration defines stages"], str(conf))
        planned = {one.case.backend for one in plan.planned}
        if left_out := [entry.name for entry in config.backends if entry.name not in planned]:
            say(f"left out because they define no stages: {', '.join(dict.fromkeys(left_out))}", sys.stderr)
        folder = new_run(config.out if out is None else out)
        folder.make()
        complete = measure(config, plan, folder, command, started, executor, interruption)
        report(folder.path)
        return DONE if complete and not interruption.asked else INTERRUPTED


if __name__ == "__main__":
    sys.exit(run_interruptible(main))
