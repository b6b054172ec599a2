"""Full attention against buckets, forest and the rest inside one model: quality, time and memory over comparisons.

    python -m lsh_bitnet.compare                                             # what lsh_bitnet/compare.yml says
    python -m lsh_bitnet.compare --set lengths=[1024] --set rounds=1 --out comparison

A sweep of the harness (every option is its own) with a model as the subject. Beside the harness's report the run's
folder then holds `comparison.md`, a table over the share of full attention's comparisons, and `comparison.svg`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd

from harness.journal import latest, read_rows
from harness.rows import Row
from harness.sweep import main as sweep

CONF = Path(__file__).parent / "compare.yml"
BEYOND = 8  # times full attention's perplexity: what lies above is named in the figure, not drawn
TITLES = {
    "method": "method",
    "n": "tokens",
    "comparison_ratio": "comparisons, of full",
    "perplexity": "perplexity",
    "loss": "perplexity over full",
    "seeds": "seeds, low to high",
    "bits_per_byte": "bits per byte",
    "accuracy": "accuracy",
    "speed_up": "speed-up",
    "memory": "memory, of full",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Sweep, then write table and figure; returns the sweep's exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m lsh_bitnet.compare",
        description="Attentions inside one model, quality and cost over comparisons; other options are the sweep's.",
    )
    parser.add_argument("--conf", default=str(CONF), help="configuration of the harness")
    parser.add_argument("--out", help="folder of rows, report, table and figure; default: a new one in reports/runs")
    parser.add_argument("--resume", help="go on with the run in this folder")
    given, others = parser.parse_known_args(arguments)
    folder = given.resume or given.out or f"reports/runs/comparison-{datetime.now(UTC):%Y%m%dT%H%M%S}"
    status = sweep([given.conf, "--resume" if given.resume else "--out", folder, *others])
    if status in (0, 1) and "--dry-run" not in others:
        for path in write(Path(folder)):
            print(path)
    return status


def write(folder: Path) -> list[Path]:
    """Write table and figure of a finished run beside its report. Raises ValueError where full attention is missing."""
    table = comparison(latest(read_rows(folder)))
    (folder / "comparison.md").write_text(markdown(table), encoding="utf8")
    figure(table, folder / "comparison.svg")
    return [folder / "comparison.md", folder / "comparison.svg"]


def comparison(rows: Sequence[Row]) -> pd.DataFrame:
    """A line a method and length, by share of comparisons: quality and cost next to full attention's, the row "flash".

    Times and bytes are medians over rounds; `speed_up` and `memory` are ratios within the run. Cells that failed are
    left out; the harness's report names them. Raises ValueError where there is no full attention to compare with.
    """
    good = pd.DataFrame([_flat(row) for row in rows if row.status == "ok"])
    full = good[good.backend == "flash"] if len(good) else good
    if full.empty:
        raise ValueError("there is nothing to compare with: the run has no `flash` that ended well")
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
    """The comparison as a Markdown table."""
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
    """Perplexity over the share of full attention's comparisons, a line a backend, controls dashed; bars over seeds."""
    import matplotlib.pyplot as plt
    import seaborn as sns
    from matplotlib.ticker import LogLocator

    full = table[table.backend == "flash"].perplexity.iloc[-1]
    beyond = table[table.perplexity > BEYOND * full].method
    some = table[(table.backend != "flash") & (table.perplexity <= BEYOND * full)]
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
    with plt.rc_context({"svg.fonttype": "none"}):  # words stay words
        drawing.savefig(path)
    plt.close(drawing)


if __name__ == "__main__":
    sys.exit(main())
