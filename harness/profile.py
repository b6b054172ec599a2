"""Where the time of an attention goes: each stage that a backend names is timed alone over the lengths of conf.yml.

    python -m harness.profile conf.yml
    python -m harness.profile conf.yml --set 'backends=[lsh_v2]' --set 'lengths=[1024, 4096, 16384]' --out /tmp/run

Backends without stages are left out. The whole attention is timed beside its stages and passes the usual gate; the
report has a chapter with each stage's share of their sum and its exponent, floor taken off, beside what the
backend's authors claim. Exit status as for `harness.sweep`.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path

UNUSABLE, INTERRUPTED = 2, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command with these arguments, by default the process's own; returns the exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser("python -m harness.profile", description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("conf", help="configuration; its grid's kernel-level forward cases are profiled")
    parser.add_argument("--out", metavar="DIR", help="folder of rows and report (default: a new one in reports/runs)")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="a.b=c", help="replace a value")
    parsed = parser.parse_args(given)
    from harness.config_source import ConfigError
    from harness.disk import unwritable
    from harness.journal import JournalError
    from harness.run_folder import FolderError

    command = shlex.join(["python", "-m", "harness.profile", *given])
    try:
        return profile(Path(parsed.conf), parsed.overrides, parsed.out, command)
    except (ConfigError, FolderError, JournalError) as error:
        print(f"error: {error}", file=sys.stderr)
        return UNUSABLE
    except OSError as error:
        print(f"error: {unwritable(error, 'the run folder')}", file=sys.stderr)
        return UNUSABLE


def profile(conf: Path, overrides: Sequence[str], out: str | None, command: str) -> int:
    """Measure, report, say where the report lies; returns the exit status."""
    started_s = time.monotonic()
    from harness.campaign import measure
    from harness.components import component_cases
    from harness.config import load_config
    from harness.plan import expand
    from harness.report import write_report
    from harness.run_folder import new_run

    config = load_config(conf, overrides)
    planned = component_cases(expand(config))
    if not planned:
        print("error: no backend of this configuration names its stages", file=sys.stderr)
        return UNUSABLE
    folder = new_run(out or config.out)
    folder.make()
    complete = measure(config, planned, folder, command, started_s)
    html, _ = write_report(folder.path)
    print(f"report: {html}")
    return 0 if complete else INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
