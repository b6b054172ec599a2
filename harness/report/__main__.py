"""Write the report of a run again from its rows:

python -m harness.report reports/runs/2026-01-31T12-00-00

prints the paths of `report.html` and `report.md`. Exit code 2 where the folder holds no readable run, or no row.
"""

from __future__ import annotations

from attentions.stopping import exit_on_signal, run_interruptible

if __name__ == "__main__":
    exit_on_signal()  # before the imports that take long

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from harness.command_line import one_line
from harness.config_source import LONGEST_PATH, shortened
from harness.journal import ROWS, latest, read_rows
from harness.report.facts import read_facts
from harness.report.render import write_rows


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the folder, write the report, print where it lies."""
    parser = argparse.ArgumentParser(prog="python -m harness.report", description="Write report.html and report.md.")
    parser.add_argument("folder", type=Path, help="a run's folder, with rows.jsonl and run.json")
    folder = parser.parse_args(arguments).folder
    try:
        if not folder.is_dir():
            raise ValueError(f"{shortened(str(folder), LONGEST_PATH)}: there is no such folder")
        facts, rows = read_facts(folder), latest(read_rows(folder))
        if not rows:
            raise ValueError(f"{folder / ROWS}: there are no rows in it; measure something first")
        paths = write_rows(folder, facts, rows)
    except (ValueError, OSError) as error:
        print(f"harness.report: {one_line(error)}", file=sys.stderr)
        return 2
    for path in paths:
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(run_interruptible(main))
