"""Has anything become worse since the baseline was recorded? Pass, fail, or not enough evidence.

    python -m harness.regress reports/runs/<run> --baseline reports/baseline/<machine>.json [--update]

prints a row a series with its verdict, the reasons and what to do next. Exit code 0: all pass; 1: something
fails; 3: nothing fails, something is ambiguous; 2: the input cannot be used. `--update` records the run in the
baseline instead of comparing. A folder as `--baseline` stands for the file of the run's machine in it.

Times are compared on the machine of the baseline only, counts (comparisons, FLOPs, allocator bytes) on any. A
time fails when it became worse beyond doubt, Holm's correction over all series included, and by more than the
margin; it passes when it is beyond doubt not worse than the margin; everything else is ambiguous.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from harness.baseline import (
    Baseline,
    BaselineError,
    RunFacts,
    load_baseline,
    read_run_facts,
    record_series,
    save_baseline,
)
from harness.comparison import GRAVEST_FIRST, Judgement, compare, gravest
from harness.expectations import judge_expectations
from harness.findings import Verdict
from harness.journal import JournalError, latest, read_rows
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
        facts, series = _read_run(parsed.folder)
        path = parsed.baseline / f"{facts.machine.name}.json" if parsed.baseline.is_dir() else parsed.baseline
        if parsed.update:
            kept = load_baseline(path) if path.exists() else None
            written = record_series(series, facts, kept=kept)
            save_baseline(path, written)
            print(f"{path}: holds {len(written.series)} series of {written.machine}")
            return EXIT_CODES["pass"]
        baseline = load_baseline(path)
    except (BaselineError, JournalError) as error:
        print(error, file=sys.stderr)
        return UNUSABLE
    judgements = compare(baseline, series, facts.machine.name)
    _show(judgements, baseline, facts)
    return EXIT_CODES[gravest(judgement.verdict for judgement in judgements)]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m harness.regress", description="Compare a run with a baseline: pass 0, fail 1, ambiguous 3."
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="a run folder, with rows.jsonl and run.json")
    parser.add_argument("--baseline", type=Path, required=True, help="the baseline file, or the folder of all machines")
    parser.add_argument("--update", action="store_true", help="record the run in the baseline instead of comparing")
    return parser


def _read_run(folder: Path) -> tuple[RunFacts, list[Series]]:
    facts = read_run_facts(folder)
    series = group_series(latest(read_rows(folder)))
    if not series:
        raise BaselineError(f"{folder / 'rows.jsonl'}: there are no rows in it; measure something first")
    return facts, series


def _show(judgements: Sequence[Judgement], baseline: Baseline, facts: RunFacts) -> None:
    console = Console(width=None if sys.stdout.isatty() else LOG_WIDTH, highlight=False)
    table = Table(title=Text(f"{facts.run} on {facts.machine.name} against the baseline"), show_lines=True)
    for heading in ("series", "verdict", "reasons", "next"):
        table.add_column(heading, overflow="fold")
    for judgement, name in zip(judgements, _names([judgement.series for judgement in judgements]), strict=True):
        table.add_row(Text(name), Text(judgement.verdict, COLOURS[judgement.verdict]), *_reasons(judgement))
    console.print(table)
    measured = {judgement.series.label for judgement in judgements}
    absent = sorted({record.case.label for record in baseline.series.values()} - measured)
    if absent:
        console.print(Text(f"in the baseline but not in this run: {', '.join(absent)}"))
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
    sys.exit(main())
