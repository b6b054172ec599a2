"""Compare a run with a baseline: has anything become worse? The verdict is pass, fail or ambiguous.

    python -m harness.regress reports/runs/<run> --baseline reports/baseline/<machine>.json [--update]

Prints one row per series with its verdict, the reasons and what to do next. Exit status 0: all pass; 1: something
fails; 3: nothing fails, something is ambiguous; 2: the input cannot be used. `--update` records the run in the baseline
instead of comparing: series that the run did not measure are kept, series that it measured are replaced as a whole, and
lengths and counts lost that way are listed. If `--baseline` is a folder, the file of the run's machine in it is used.

Times are compared only on the baseline's machine; counts (comparisons, FLOPs, allocator bytes) on any. A time fails if
it is significantly worse, with Holm's correction over all series, and by more than the margin. It passes if it is
certainly within the margin. Everything else is ambiguous, including series, lengths, times and counts that the baseline
has and the run lacks, and times that became worse in cases disturbed by other programs. A length that is now wrong,
unsupported or a crash fails on any machine; one that ran out of memory or time fails on the baseline's machine and is
ambiguous on another. A baseline of an older version that does not say which processor its machine has is compared by
counts only.
"""

from __future__ import annotations

from attentions.common.stopping import exit_on_signal, run_interruptible

if __name__ == "__main__":
    exit_on_signal()  # before the slow imports

import argparse
import io
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from attentions.common.commands import program_name
from harness.common.command_line import one_line
from harness.common.printing import say
from harness.common.text import LONGEST_PATH, shortened
from harness.config.yaml_source import show
from harness.results.baseline import (
    Baseline,
    BaselineError,
    dropped,
    load_baseline,
    record_series,
    save_baseline,
)
from harness.results.disturbance import busy_cases, disturbance
from harness.results.rows_file import JournalError, latest, read_rows
from harness.results.run_file import RunFacts, RunFileError, read_facts
from harness.stats.analysis import Analysis
from harness.stats.comparison import WORST_FIRST, Judgement, compare, worst_verdict
from harness.stats.expectations import judge_expectations

if TYPE_CHECKING:
    from harness.common.rows import Case
    from harness.results.series import Series
    from harness.stats.findings import Verdict

__all__ = ["judge_expectations", "main"]

EXIT_CODES: dict[Verdict, int] = {"pass": 0, "fail": 1, "ambiguous": 3}
UNUSABLE = 2
COLOURS: dict[Verdict, str] = {"pass": "green", "fail": "bold red", "ambiguous": "yellow"}
LOG_WIDTH = 140  # characters per line if there is no terminal
LONGEST_NAME = 200  # in characters, of a machine's name, which is used as a file name
LONGEST_MESSAGE, LONGEST_CELL = 1000, 5000  # in characters


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return the exit status."""
    parser = _parser()
    parsed = parser.parse_args(arguments)
    try:
        facts, analysis = _read_run(parsed.folder)
        path = _baseline_path(parsed.baseline, facts, update=parsed.update)
        if parsed.update:
            _update(path, analysis.series, facts)
            return EXIT_CODES["pass"]
        baseline = load_baseline(path)
    except (BaselineError, JournalError, RunFileError, OSError) as error:
        print(f"{parser.prog}: {shortened(one_line(error), LONGEST_MESSAGE)}", file=sys.stderr)
        return UNUSABLE
    busy, common_name = disturbance(analysis.rows), facts.machine.common_name
    judgements = compare(baseline, analysis.series, facts.machine.name, common_name=common_name, busy=busy)
    _show(judgements, facts, busy)
    return EXIT_CODES[worst_verdict(judgement.verdict for judgement in judgements)]


def _update(path: Path, series: Sequence[Series], facts: RunFacts) -> None:
    """Record a run, and report doubtful measurements and what the baseline loses."""
    kept = load_baseline(path) if path.exists() else None
    written = record_series(series, facts, kept=kept)
    save_baseline(path, written)
    rows = [row for one in series for row in one.rows]
    if busy := disturbance(rows) or busy_cases(rows):
        print(f"recorded anyway: {busy}", file=sys.stderr)
    for line in _losses(kept, written, series) if kept is not None else ():
        print(line, file=sys.stderr)
    place = shortened(str(path), LONGEST_MESSAGE)
    say(f"{place}: holds {len(written.series)} series of {shortened(written.machine)}", sys.stdout)


def _losses(kept: Baseline, written: Baseline, series: Sequence[Series]) -> Iterator[str]:
    names = dict(zip(written.series, _names([record.case for record in written.series.values()]), strict=True))
    for one in series:
        if one.key not in kept.series:
            continue
        if not one.measured():
            yield f"{names[one.key]}: nothing was measured in this run, so its baseline entry is kept"
        elif lost := dropped(kept.series[one.key], written.series[one.key]):
            yield f"{names[one.key]}: dropped from the baseline because this run lacks it: {lost}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=program_name("harness.regress"), description="Compare a run with a baseline: pass 0, fail 1, ambiguous 3."
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="a run folder, with rows.jsonl and run.json")
    parser.add_argument("--baseline", type=Path, required=True, help="baseline file, or folder with a file per machine")
    parser.add_argument(
        "--update",
        action="store_true",
        help="record the run in the baseline instead of comparing; unmeasured series are kept, measured "
        "series are replaced entirely, and lengths missing from the run are dropped and reported",
    )
    return parser


def _read_run(folder: Path) -> tuple[RunFacts, Analysis]:
    facts = read_facts(folder)
    rows = latest(read_rows(folder))
    if not rows:
        raise BaselineError(f"{folder / 'rows.jsonl'}: it has no rows; measure something first")
    return facts, Analysis(rows)


def _baseline_path(wanted: Path, facts: RunFacts, *, update: bool) -> Path:
    """Return the baseline file; in a folder, that of the run's machine, or its name in an older version."""
    if not wanted.is_dir():
        return wanted
    name = facts.machine.name
    if not (0 < len(name) <= LONGEST_NAME and name.isprintable() and "/" not in name):
        raise BaselineError(
            f"machine.name in run.json, {show(name)}, cannot be a file name in {wanted}; give the file itself"
        )
    path, older = (wanted / f"{name}.json" for name in (facts.machine.name, facts.machine.common_name))
    return older if not update and not path.exists() and older.exists() else path


def _show(judgements: Sequence[Judgement], facts: RunFacts, busy: str) -> None:
    """Print everything at once: the verdict is valid even if some part cannot be displayed or encoded."""
    width = None if sys.stdout.isatty() else LOG_WIDTH
    there = Console(file=sys.stdout).is_terminal  # FORCE_COLOR and similar variables decide this too
    page = io.TextIOWrapper(io.BytesIO(), encoding=sys.stdout.encoding or "utf-8", errors="backslashreplace")
    console = Console(file=page, force_terminal=there, width=width, highlight=False)
    _print(console, judgements, facts, busy)
    page.seek(0)
    say(page.read().rstrip("\n"), sys.stdout)


def _print(console: Console, judgements: Sequence[Judgement], facts: RunFacts, busy: str) -> None:
    run, machine = shortened(facts.run), shortened(facts.machine.name)
    table = Table(title=Text(f"{run} on {machine} against the baseline"), show_lines=True)
    for heading in ("series", "verdict", "reasons", "next"):
        table.add_column(heading, overflow="fold")
    for judgement, name in zip(judgements, _names([judgement.series.case for judgement in judgements]), strict=True):
        table.add_row(Text(name), Text(judgement.verdict, COLOURS[judgement.verdict]), *_reasons(judgement))
    console.print(table)
    absent = sorted({shortened(judgement.series.label) for judgement in judgements if not judgement.series.rows})
    if absent:
        console.print(Text(f"in the baseline but not in this run: {', '.join(absent)}"))
    if busy:
        console.print(Text(busy))
    verdict = worst_verdict(judgement.verdict for judgement in judgements)
    counts = ", ".join(f"{sum(one.verdict == value for one in judgements)} {value}" for value in EXIT_CODES)
    timed = sum(bool(one.changes) for one in judgements)
    line = f"{verdict}: {counts}; times compared in {timed} of {len(judgements)} series"
    console.print(Text(line, COLOURS[verdict]))


def _reasons(judgement: Judgement) -> tuple[Text, Text]:
    """Return the reasons, worst first, and the next steps."""
    findings = sorted(judgement.findings, key=lambda finding: WORST_FIRST.index(finding.verdict))
    steps = dict.fromkeys(finding.next_step for finding in findings if finding.next_step)
    reasons = (shortened(finding.reason, LONGEST_CELL) for finding in findings)
    return Text("\n".join(reasons)), Text("\n".join(steps))


def _names(cases: Sequence[Case]) -> list[str]:
    """Return the labels, with the parts of the identity that differ among the cases."""
    parts = [case.model_dump(exclude={"label", "backend", "settings", "control", "n"}) for case in cases]
    varying = [key for key in (parts[0] if parts else ()) if len({part[key] for part in parts}) > 1]
    return [
        " · ".join([shortened(case.label, LONGEST_PATH), *(f"{key}={shortened(str(part[key]))}" for key in varying)])
        for case, part in zip(cases, parts, strict=True)
    ]


if __name__ == "__main__":
    sys.exit(run_interruptible(main))
