"""Write the report of a run again from its rows.

    python -m harness.report reports/runs/20260131-120000-1a2b
    python -m harness.report reports/runs/20260131-120000-1a2b --picture time.svg

Prints the paths of `report.html` and `report.md`. With `--picture` it writes the figure of time against length to a
file of its own instead, and leaves the report as it is. Exit status 2 if the folder has no readable run or no rows.
"""

from __future__ import annotations

from attentions.common.stopping import exit_on_signal, run_interruptible

if __name__ == "__main__":
    exit_on_signal()  # before the slow imports

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from attentions.common.commands import program_name
from harness.common.command_line import one_line
from harness.common.text import LONGEST_PATH, shortened
from harness.report.document import build_document
from harness.report.render import write_document, write_picture
from harness.results.rows_file import ROWS, latest, read_rows
from harness.results.run_file import read_facts
from harness.stats.analysis import Analysis


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the arguments, write the report and print its paths."""
    parser = argparse.ArgumentParser(
        prog=program_name("harness.report"), description="Write report.html and report.md."
    )
    parser.add_argument("folder", type=Path, help="a run's folder, with rows.jsonl and run.json")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="write only the first figure, as an SVG file")
    given = parser.parse_args(arguments)
    folder: Path = given.folder
    try:
        if not folder.is_dir():
            raise ValueError(f"{shortened(str(folder), LONGEST_PATH)}: there is no such folder")
        facts, rows = read_facts(folder), latest(read_rows(folder))
        if not rows:
            raise ValueError(f"{folder / ROWS}: it has no rows; measure something first")
        document = build_document(Analysis(rows), facts)
        if given.picture is None:
            paths = write_document(folder, document)
        else:
            write_picture(given.picture, document)
            paths = (given.picture,)
    except (ValueError, OSError) as error:
        print(f"{parser.prog}: {one_line(error)}", file=sys.stderr)
        return 2
    for path in paths:
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(run_interruptible(main))
