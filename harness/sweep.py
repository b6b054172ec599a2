"""Measure what conf.yml asks for, fit, and write a report.

    python -m harness.sweep conf.yml
    python -m harness.sweep conf.yml --set lengths=[1024,4096] --set budget.total_s=60 --out /tmp/run
    python -m harness.sweep conf.yml --dry-run
    python -m harness.sweep conf.yml --section vq
    python -m harness.sweep --resume reports/runs/20260131-120000-1a2b

Prints one line a case, or a live bar on a terminal, and at the end where the report lies:

    round 1 [3/27] flash n=4096 kernel forward text float32: 0.0271 s
    ...
    report: reports/runs/20260131-120000-1a2b/report.html

Exit status: 0 done; 1 an expectation of conf.yml failed; 2 nothing could be done, and why; 130 interrupted, by Ctrl-C
or SIGTERM, with everything measured so far kept and reported. The report is written to its end, however often one asks.
Each case runs in a process of its own; see `harness.measure`.
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


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command with these arguments, by default the process's own; returns the exit status."""
    with Interruption() as interruption:
        parsed = _parse(sys.argv[1:] if arguments is None else arguments)
        from harness.conduct import Request, guarded, sweep

        given = parsed.out, parsed.resume, parsed.dry_run, parsed.section
        request = Request(parsed.conf or "", tuple(parsed.overrides), *given)
        return guarded(lambda: sweep(request, interruption))


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    import argparse

    parser = argparse.ArgumentParser("python -m harness.sweep", description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("conf", nargs="?", help="configuration; with --resume by default the one in the folder")
    parser.add_argument("--out", metavar="DIR", help="folder of rows and report (default: a new one in reports/runs)")
    parser.add_argument("--resume", metavar="DIR", help="go on with the run in this folder; nothing is measured twice")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="a.b=c", help="replace a value")
    parser.add_argument("--section", metavar="NAME", help="measure what this section of conf asks for, such as vq")
    parser.add_argument("--dry-run", action="store_true", help="print what would be measured and write nothing")
    parsed = parser.parse_args(arguments)
    if parsed.conf is None and parsed.resume is None:
        parser.error("name a configuration, such as conf.yml, or a run to --resume")
    if parsed.out and parsed.resume:
        parser.error("--out and --resume exclude each other: a run goes on in its own folder")
    return parsed


if __name__ == "__main__":
    sys.exit(run_interruptible(main))
