"""Has anything become worse since the baseline was recorded? Pass, fail, or not enough evidence.

    python -m harness.regress reports/runs/<run> --baseline reports/baseline/<machine>.json [--update]

prints a row a series with its verdict, the reasons and what to do next. Exit code 0: all pass; 1: something
fails; 3: nothing fails, something is ambiguous; 2: the input cannot be used. `--update` records the run in the
baseline instead of comparing. A folder as `--baseline` stands for the file of the run's machine in it.

Times are compared on the machine of the baseline only, counts (comparisons, FLOPs, allocator bytes) on any. A
time fails when it became worse beyond doubt, Holm's correction over all series included, and by more than the
margin; it passes when it is beyond doubt not worse than the margin; everything else is ambiguous. So are series and
lengths that the baseline holds and the run lacks, since nobody knows of them, and times that became worse on a machine
that other programs kept busy. A baseline of an older version that does not say which processor its machine has is
compared by counts alone.
"""

from __future__ import annotations

from attentions.stopping import hold, interruptible

if __name__ == "__main__":
    hold()  # before the imports that take long

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from harness.baseline import (
    BaselineError,
    RunFacts,
    load_baseline,
    read_run_facts,
    record_series,
    save_baseline,
)
from harness.comparison import GRAVEST_FIRST, Judgement, compare, gravest
from harness.disturbance import disturbance
from harness.expectations import judge_expectations
from harness.findings import Verdict
from harness.journal import JournalError, latest, read_rows
from harness.rows import Row
from harness.samples import Series, group_series

__all__ = ["judge_expectations", "main"]

EXIT_CODES: dict[Verdict, int] = {"pass": 0, "fail": 1, "ambiguous": 3}
UNUSABLE = 2
COLOURS: dict[Verdict, str] = {"pass": "green", "fail": "bold red", "ambiguous": "yellow"}
LOG_WIDTH = 140  # characters a line where there is no terminal to ask


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""
    parsed = _parser().parse_args(arguments)
    try:
        facts, rows = _read_run(parsed.folder)
        series, busy = group_series(rows), disturbance(rows)
        path = _baseline_path(parsed.baseline, facts, update=parsed.update)
        if parsed.update:
            if busy:
                print(f"recorded all the same: {busy}", file=sys.stderr)
            kept = load_baseline(path) if path.exists() else None
            written = record_series(series, facts, kept=kept)
            save_baseline(path, written)
            print(f"{path}: holds {len(written.series)} series of {written.machine}")
            return EXIT_CODES["pass"]
        baseline = load_baseline(path)
    except (BaselineError, JournalError) as error:
        print(error, file=sys.stderr)
        return UNUSABLE
    except OSError as error:
        print(f"{error.filename}: cannot be read: {error.strerror}", file=sys.stderr)
        return UNUSABLE
    common_name = facts.machine.common_name
    judgements = compare(baseline, series, facts.machine.name, common_name=common_name, busy=busy)
    _show(judgements, facts, busy)
    return EXIT_CODES[gravest(judgement.verdict for judgement in judgements)]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m harness.regress", description="Compare a run with a baseline: pass 0, fail 1, ambiguous 3."
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="a run folder, with rows.jsonl and run.json")
    parser.add_argument("--baseline", type=Path, required=True, help="the baseline file, or the folder of all machines")
    parser.add_argument("--update", action="store_true", help="record the run in the baseline instead of comparing")
    return parser


def _read_run(folder: Path) -> tuple[RunFacts, list[Row]]:
    facts = read_run_facts(folder)
    rows = latest(read_rows(folder))
    if not rows:
        raise BaselineError(f"{folder / 'rows.jsonl'}: there are no rows in it; measure something first")
    return facts, rows


def _baseline_path(wanted: Path, facts: RunFacts, *, update: bool) -> Path:
    """The file meant; in a folder that of the run's machine, or else what an older version called it."""
    if not wanted.is_dir():
        return wanted
    path, older = (wanted / f"{name}.json" for name in (facts.machine.name, facts.machine.common_name))
    return older if not update and not path.exists() and older.exists() else path


def _show(judgements: Sequence[Judgement], facts: RunFacts, busy: str) -> None:
    console = Console(width=None if sys.stdout.isatty() else LOG_WIDTH, highlight=False)
    table = Table(title=Text(f"{facts.run} on {facts.machine.name} against the baseline"), show_lines=True)
    for heading in ("series", "verdict", "reasons", "next"):
        table.add_column(heading, overflow="fold")
    for judgement, name in zip(judgements, _names([judgement.series for judgement in judgements]), strict=True):
        table.add_row(Text(name), Text(judgement.verdict, COLOURS[judgement.verdict]), *_reasons(judgement))
    console.print(table)
    absent = sorted({judgement.series.label for judgement in judgements if not judgement.series.rows})
    if absent:
        console.print(Text(f"in the baseline but not in this run: {', '.join(absent)}"))
    if busy:
        console.print(Text(busy))
    verdict = gravest(judgement.verdict for judgement in judgements)
    counts = ", ".join(f"{sum(one.verdict == value for one in judgements)} {value}" for value in EXIT_CODES)
    console.print(Text(f"{verdict}: {counts}", COLOURS[verdict]))


def _reasons(judgement: Judgement) -> tuple[Text, Text]:
    """Reasons, gravest first, and the steps that follow from them."""
    findings = sorted(judgement.findings, key=lambda finding: GRAVEST_FIRST.index(finding.verdict))
    steps = dict.fromkeys(finding.next_step for finding in findings if finding.next_step)
    return Text("\n".join(finding.reason for finding in findings)), Text("\n".join(steps))


def _names(series: Sequence[Series]) -> list[str]:
    """Labels, with those parts of the identity that differ among the series of the run."""
    cases = [one.case.model_dump(exclude={"label", "backend", "settings", "control", "n"}) for one in series]
    varying = [key for key in (cases[0] if cases else ()) if len({case[key] for case in cases}) > 1]
    return [
        " · ".join([one.label, *(f"{key}={case[key]}" for key in varying)])
        for one, case in zip(series, cases, strict=True)
    ]


if __name__ == "__main__":
    sys.exit(interruptible(main))
