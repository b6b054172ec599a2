"""Compares attentions inside one model: quality, time, and memory over the number of comparisons.

    python -m lsh_bitnet.compare                                             # as configured in lsh_bitnet/compare.yml
    python -m lsh_bitnet.compare --set lengths=[1024] --set rounds=1 --out comparison

This is a sweep of the harness (with all of its options) and a model as the subject. Besides the harness's report, the
run's folder gets `comparison.md`, a table over the share of full attention's comparisons, and `comparison.svg`.
"""

from __future__ import annotations

from attentions.common.stopping import exit_on_signal, run_interruptible

if __name__ == "__main__":
    exit_on_signal()  # before the slow imports

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from harness.config.model import load_config
from harness.measure.roofline import MeasureCeilings
from harness.results.rows_file import latest, read_rows
from harness.results.run_dir import new_run, old_run
from harness.runner.executor import Executor, Limits
from harness.runner.plan import expand
from harness.subjects.base import subject_of
from harness.sweep import main as sweep
from lsh_bitnet.commands import Parser, run
from lsh_bitnet.model_subject import ModelSubject
from lsh_bitnet.models import config_of, content_of

if TYPE_CHECKING:
    from harness.common.rows import Case, Row

CONF = Path(__file__).parent / "compare.yml"
FULL = "flash"  # the reference backend
CONTENT = "model.json"  # file in a run's folder with the content hash of the model
SLOW = 1e10  # operations per second that any machine reaches; below this, skip measuring the machine
BEYOND = 8  # times full attention's perplexity; methods above are listed in the figure, not drawn
TITLES = {
    "method": "method",
    "n": "tokens",
    "comparison_ratio": "comparisons, of full",
    "perplexity": "perplexity",
    "loss": "perplexity over full",
    "seeds": "range over seeds",
    "bits_per_byte": "bits per byte",
    "accuracy": "accuracy",
    "speed_up": "speed-up",
    "memory": "memory, of full",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the sweep, then write the table and the figure; returns the sweep's exit status."""
    parser = Parser(
        prog="python -m lsh_bitnet.compare",
        description="Compare the quality and cost of attentions inside one model.",
    )
    parser.add_argument("--conf", metavar="FILE", help=f"harness configuration (default: {CONF.name} here)")
    parser.add_argument(
        "--out", metavar="DIR", help="output folder for rows, report, table and figure (default: a new one)"
    )
    parser.add_argument("--resume", metavar="DIR", help="continue the run in this folder")
    parser.add_argument(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="a.b=c",
        help="override a value of the configuration",
    )
    parser.add_argument("--dry-run", action="store_true", help="print what would be measured and write nothing")
    given = parser.parse_args(arguments)
    if given.out is not None and given.resume is not None:
        parser.error("--out and --resume cannot be combined: a run continues in its own folder")
    return run(parser, lambda: _compare(given))


def _compare(given: argparse.Namespace) -> int:
    """Check everything before the first case, then run the sweep."""
    earlier = None if given.resume is None else old_run(given.resume)
    conf = given.conf or str(CONF if earlier is None else earlier.config)
    config = load_config(Path(conf), given.overrides)
    default = f"reports/runs/comparison-{datetime.now(UTC):%Y%m%dT%H%M%S}"
    wanted = next(out for out in (given.out, config.out, default) if out is not None)
    folder = new_run(wanted).path if earlier is None else earlier.path
    cases = [one.case for one in expand(config)]
    _require_full(cases)
    _require_possible(cases)
    _require_time(cases, config.budget.case_s)
    overrides = [part for one in given.overrides for part in ("--set", one)]
    if given.dry_run:
        return sweep([conf, *overrides, "--dry-run"])
    if earlier is not None:
        _require_same(cases, read_rows(folder))
    _require_content(folder, contents(cases))
    place = ["--out", str(folder)] if earlier is None else ["--resume", str(folder)]
    status = sweep([*([] if earlier and given.conf is None else [conf]), *place, *overrides])
    if status in (0, 1):
        for path in write(folder):
            print(path)
    return status


def _require_full(cases: Sequence[Case]) -> None:
    """Raise ValueError unless full attention is included at each length as the reference."""
    lengths = {case.n for case in cases}
    if missing := sorted(lengths - {case.n for case in cases if case.backend == FULL}):
        at = ", ".join(map(str, missing))
        raise ValueError(f"backends: at n = {at} there is no reference; {FULL} must be among them")
    if len(subjects := {case.subject for case in cases}) > 1:
        raise ValueError(f"subject: {', '.join(sorted(subjects))} were given; a comparison covers a single model")


def _require_possible(cases: Sequence[Case]) -> None:
    """Raise ValueError for the first case that the model cannot run, for example with the wrong number of heads.

    Also raises it for a length for which the task has no examples.
    """
    for case in cases:
        if reason := _model_subject(case.subject).why_not(case):
            raise ValueError(f"{case.label} at n = {case.n} cannot be measured: {reason}")
    for name, n in sorted({(case.subject, case.n) for case in cases}):
        try:
            _model_subject(name).require_examples(n)
        except ValueError as error:
            raise ValueError(f"lengths: n = {n} is not possible: {error}") from error


def _require_time(cases: Sequence[Case], case_s: float) -> None:
    """Raise ValueError if full attention cannot finish within `case_s` seconds, however fast its kernel is."""
    full = [case for case in cases if case.backend == FULL]
    work = {case.n: max(_least_flops(one) for one in full if one.n == case.n) for case in full}
    if max(work.values()) <= SLOW * case_s:
        return
    dtype, device = full[0].dtype, full[0].device
    job = MeasureCeilings(device, [dtype], full[0].threads, budget_s=1.0)
    with Executor(Path(tempfile.gettempdir())) as executor:
        found = executor.run(job, Limits(60)).answer
    rate = found.flops_per_s[dtype] if found else 0.0
    for n, flops in sorted(work.items()):
        if rate and flops > rate * case_s:
            raise ValueError(
                f"lengths: n = {n} is not possible within budget.case_s = {case_s:g}: full attention takes at least "
                f"{flops:.1e} operations, {flops / rate:.0f} s at the {rate:.1e} per second that this machine reaches"
            )


def _least_flops(case: Case) -> float:
    """Operations of full attention alone in a case's first round: 2·D + 2·E per pair."""
    subject = _model_subject(case.subject)
    pairs = case.batch * case.heads * case.n * (case.n + 1) / 2
    layers = config_of(subject.model).num_hidden_layers
    return 2.0 * (case.head_dim + case.value_dim) * pairs * layers * subject.forwards(case.n)


def _model_subject(name: str) -> ModelSubject:
    """Return the subject of that name. Raises ValueError if it is not a model."""
    subject: Any = subject_of(name)
    if not isinstance(subject, ModelSubject):
        raise ValueError(f"subject: {name} is not allowed; it must be a {ModelSubject.__name__}")
    return subject


def _require_same(cases: Sequence[Case], rows: Sequence[Row]) -> None:
    """Raise ValueError if a folder's rows belong to other cases than those to be measured now."""
    planned = {case.digest() for case in cases}
    for row in rows:
        if (case := row.case).digest() not in planned:
            raise ValueError(
                f"--resume: the folder holds {case.label} at n = {case.n} of {case.subject} with settings other than "
                "those requested now; a comparison covers one model, text and settings, so use another folder"
            )


def contents(cases: Sequence[Case]) -> dict[str, str]:
    """Return the content hash of each subject's model."""
    return {name: content_of(_model_subject(name).model) for name in {case.subject for case in cases}}


def _require_content(folder: Path, found: dict[str, str]) -> None:
    """Store the content hashes of the models next to the rows. Raises ValueError if they differ from stored ones."""
    place = folder / CONTENT
    if place.exists():
        noted = json.loads(place.read_text(encoding="utf8"))
        if noted != found:
            raise ValueError(
                f"--resume: {folder} holds rows of weights that {', '.join(found)} no longer has; use another folder"
            )
        return
    folder.mkdir(parents=True, exist_ok=True)
    place.write_text(json.dumps(found, indent=1) + "\n", encoding="utf8")


def write(folder: Path) -> list[Path]:
    """Write a finished run's table and figure next to its report. Raises ValueError if full attention is missing."""
    table = comparison(latest(read_rows(folder)))
    (folder / "comparison.md").write_text(markdown(table), encoding="utf8")
    figure(table, folder / "comparison.svg")
    return [folder / "comparison.md", folder / "comparison.svg"]


def comparison(rows: Sequence[Row]) -> pd.DataFrame:
    """Return one line per method and length, by share of comparisons: quality and cost relative to full attention.

    Full attention is the row "flash". Times and bytes are medians over rounds; `speed_up` and `memory` are ratios
    within the run. Failed cells are omitted; the harness's report lists them. Raises ValueError if there is no full
    attention.
    """
    good = pd.DataFrame([_flat(row) for row in rows if row.status == "ok"])
    full = good[good.backend == FULL] if len(good) else good
    if full.empty:
        raise ValueError(f"there is no reference: the run has no successful `{FULL}`")
    of = good.groupby(["method", "backend", "control", "n"], as_index=False).median(numeric_only=True)
    base = full.groupby("n").median(numeric_only=True)
    of["loss"] = of.perplexity / of.n.map(base.perplexity) - 1
    of["speed_up"] = of.n.map(base.time_s) / of.time_s
    of["memory"] = of.peak_bytes / of.n.map(base.peak_bytes)
    return of.sort_values(["n", "comparison_ratio"], ascending=[True, False], ignore_index=True)


def _flat(row: Row) -> dict[str, object]:
    shown = {name: getattr(row, name) for name in ("backend", "control", "n", "round", "time_s", "peak_bytes")}
    return {"method": row.label, **shown, **row.metrics}


def markdown(table: pd.DataFrame) -> str:
    """Format the comparison as a Markdown table."""
    shown = table.assign(
        comparison_ratio=table.comparison_ratio.map("{:.1%}".format),
        perplexity=table.perplexity.map("{:.3f}".format),
        loss=table.loss.map("{:+.1%}".format),
        seeds=[
            f"{low:.3f} to {high:.3f}" for low, high in zip(table.perplexity_low, table.perplexity_high, strict=True)
        ],
        bits_per_byte=table.bits_per_byte.map("{:.3f}".format),
        accuracy=table.accuracy.map("{:.0%}".format),
        speed_up=table.speed_up.map("{:.2f}×".format),
        memory=table.memory.map("{:.0%}".format),
    )
    lines = [list(TITLES.values()), ["---"] * len(TITLES), *shown[list(TITLES)].astype(str).to_numpy().tolist()]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def figure(table: pd.DataFrame, path: Path) -> None:
    """Plot perplexity over the share of comparisons, one line per backend, controls dashed, with bars over seeds."""
    import matplotlib.pyplot as plt
    import seaborn as sns
    from matplotlib.ticker import LogLocator

    full = table[table.backend == FULL].perplexity.iloc[-1]
    beyond = table[table.perplexity > BEYOND * full].method
    some = table[(table.backend != FULL) & (table.perplexity <= BEYOND * full)]
    drawing, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    sns.lineplot(
        some.assign(family=[name.split(" ")[0] for name in some.method]),
        x="comparison_ratio",
        y="perplexity",
        hue="family",
        style="control",
        markers=True,
        ax=axes,
    )
    axes.vlines(some.comparison_ratio, some.perplexity_low, some.perplexity_high, color="0.5", lw=1)
    axes.axhline(full, color="0.4", lw=1, label="full attention")
    axes.set(xscale="log", yscale="log")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 3, 5, 7)))
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter("")
    axes.set(xlabel="comparisons, of full attention's", ylabel="perplexity")
    if len(beyond):
        axes.set_title(f"above {BEYOND} times full attention's: {', '.join(beyond)}", fontsize="small")
    axes.legend()
    with plt.rc_context({"svg.fonttype": "none"}):  # keep text as text
        drawing.savefig(path)
    plt.close(drawing)


if __name__ == "__main__":
    sys.exit(run_interruptible(main))
