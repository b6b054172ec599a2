"""Measure the cases in conf.yml, fit their growth, and write a report.

    python -m harness.sweep conf.yml
    python -m harness.sweep conf.yml --set lengths=[1024,4096] --set budget.total_s=60 --out /tmp/run
    python -m harness.sweep conf.yml --dry-run
    python -m harness.sweep conf.yml --section vq
    python -m harness.sweep --resume reports/runs/20260131-120000-1a2b

Prints one line per case, or a live bar on a terminal, and the path of the report at the end:

    round 1 [3/27] flash n=4096 kernel forward text float32: 0.0271 s
    ...
    report: reports/runs/20260131-120000-1a2b/report.html

Exit status: 0 done; 1 an expectation of conf.yml failed; 2 nothing could be done, with the reason; 130 interrupted by
Ctrl-C or SIGTERM, with everything measured so far kept and reported. The report is always written to its end, even
after further signals. Each case runs in its own process; see `harness.runner.case`.
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


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command with these arguments (default: the process's own); return the exit status."""
    with Interruption() as interruption:
        parsed = _parse(sys.argv[1:] if arguments is None else arguments)
        from harness._conduct import Request, guarded, sweep

        given = parsed.out, parsed.resume, parsed.dry_run, parsed.section
        request = Request(parsed.conf or "", tuple(parsed.overrides), *given)
        return guarded("harness.sweep", lambda: sweep(request, interruption))


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    import argparse

    from attentions.common.commands import program_name

    parser = argparse.ArgumentParser(
        program_name("harness.sweep"), description=__doc__.split("\n")[0] if __doc__ else ""
    )
    parser.add_argument("conf", nargs="?", help="configuration file (with --resume, default: the one in the folder)")
    parser.add_argument(
        "--out", metavar="DIR", help="output folder for rows and report (default: a new one in reports/runs)"
    )
    parser.add_argument(
        "--resume", metavar="DIR", help="continue the run in this folder without measuring anything twice"
    )
    parser.add_argument(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="a.b=c",
        help="override a value of the configuration",
    )
    parser.add_argument("--section", metavar="NAME", help="measure only this section of the configuration, such as vq")
    parser.add_argument("--dry-run", action="store_true", help="print what would be measured and write nothing")
    parsed = parser.parse_args(arguments)
    if parsed.conf is None and parsed.resume is None:
        parser.error("give a configuration such as conf.yml, or a run with --resume")
    if parsed.out and parsed.resume:
        parser.error("--out and --resume cannot be combined: a run continues in its own folder")
    return parsed


if __name__ == "__main__":
    sys.exit(run_interruptible(main))
