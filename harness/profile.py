"""Where the time of an attention goes: each stage that a backend names is timed alone over the lengths of conf.yml.

    python -m harness.profile conf.yml
    python -m harness.profile conf.yml --set 'backends=[lsh_v2]' --set 'lengths=[1024, 4096, 16384]' --out /tmp/run

Backends without stages are left out. The whole attention is timed beside its stages and passes the usual gate; the
report has a chapter with each stage's share of their sum and its exponent, floor taken off, beside what the
backend's authors claim. Exit status as for `harness.sweep`.
"""

from __future__ import annotations

from attentions.stopping import exit_on_signal, run_interruptible

if __name__ == "__main__":
    exit_on_signal()  # before the imports that take long

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from harness.interruption import Interruption

# All else is imported later: what comes before `exit_on_signal` must be light, lest a signal falls into it.
if TYPE_CHECKING:
    import argparse
    from pathlib import Path


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command with these arguments, by default the process's own; returns the exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    parsed = _parse(given)
    import shlex
    from pathlib import Path

    from harness.conduct import guarded

    command = shlex.join(["python", "-m", "harness.profile", *given])
    return guarded(lambda: profile(Path(parsed.conf), parsed.overrides, parsed.out, command))


def _parse(given: Sequence[str]) -> argparse.Namespace:
    import argparse

    parser = argparse.ArgumentParser("python -m harness.profile", description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("conf", help="configuration; its grid's kernel-level forward cases are profiled")
    parser.add_argument("--out", metavar="DIR", help="folder of rows and report (default: a new one in reports/runs)")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="a.b=c", help="replace a value")
    return parser.parse_args(given)


def profile(conf: Path, overrides: Sequence[str], out: str | None, command: str) -> int:
    """Measure, report, say where the report lies; returns the exit status.

    Raises ValueError, with one message, for what cannot be used, and KeyboardInterrupt where a signal comes before
    there is a folder.
    """
    import tempfile
    import time
    from pathlib import Path

    started_s = time.monotonic()
    from harness.campaign import measure
    from harness.conduct import DONE, INTERRUPTED, report
    from harness.config import ConfigError, load_config
    from harness.executor import Executor
    from harness.outsiders import make_plan
    from harness.run_folder import new_run

    with Interruption() as interruption, Executor(Path(tempfile.gettempdir()), interruption) as executor:
        config = load_config(conf, overrides)
        interruption.check()
        plan = make_plan(config, executor, stages=True)
        if not plan.planned:
            raise ConfigError(["no backend of this configuration names its stages"], str(conf))
        folder = new_run(config.out if out is None else out)
        folder.make()
        complete = measure(config, plan, folder, command, started_s, executor, interruption)
        report(folder.path)
        return DONE if complete and not interruption.asked else INTERRUPTED


if __name__ == "__main__":
    sys.exit(run_interruptible(main))
