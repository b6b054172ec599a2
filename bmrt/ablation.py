"""Runs the ablation grid: every strategy and mode on the same samples, with one table and one figure.

    python -m bmrt.ablation --model_path DIR --tasks niah_single_2 niah_multikey_1 --length 2048 --num_samples 40 \
        --compression_ratio 0.25

Runs full attention, `exact` and both `lsh` modes in both compression modes, twelve hybrids (shares 0.5 and 0.75 of
exact + frequency_rank, exact + magicpig_baseline, and the two lsh modes, in both compression modes), and the baselines.
The model is loaded once; interrupted runs continue. Writes the records of each run, and one table and figure of all,
<save_dir>/ablation_<tasks>_<length>_<samples>_<size>.md and .svg (`..._core` without baselines).
"""

from __future__ import annotations

from attentions.common.stopping import exit_on_signal, run_interruptible

if __name__ == "__main__":
    exit_on_signal()  # before the slow imports

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attentions.common.settings import require
from bmrt.cache.plan import MODES
from bmrt.cache.settings import BASELINES, Settings
from bmrt.evaluation.evaluate import Judge, Sample, evaluate, interval
from bmrt.evaluation.generated import TASKS, Generated
from bmrt.evaluation.options import command, engine_of, file_name, require_distinct, require_writable, run

if TYPE_CHECKING:
    from bmrt.cache.engine import RecursiveCompressionEngine

HYBRIDS = (("exact", "frequency_rank"), ("exact", "magicpig_baseline"), ("frequency_rank", "magicpig_baseline"))
HYBRID_RATIOS = (0.5, 0.75)


def main(arguments: list[str] | None = None) -> None:
    """Parse the arguments and run the command."""
    parser = command(
        "ablation", "Evaluate every strategy and mode on the same samples.", max_new_tokens=32, method=False
    )
    parser.add_argument("--tasks", nargs="+", default=["niah_single_2"], help=f"tasks to run, from {', '.join(TASKS)}")
    parser.add_argument("--length", type=int, default=2048, help="tokens of prompt and answer together")
    parser.add_argument("--num_samples", type=int, default=40, help="samples per task")
    parser.add_argument(
        "--wording",
        default="ruler",
        choices=("ruler", "short"),
        help="wording of the prompts; short is for small models",
    )
    parser.add_argument("--num_bits", type=int, default=12, help="bits per hash of the LSH methods (default: 12)")
    parser.add_argument("--num_tables", type=int, default=20, help="hash tables of the LSH methods (default: 20)")
    parser.add_argument("--no_baselines", action="store_true", help="only the seventeen core runs")
    run(_ablate, parser, arguments)


def grid(*, baselines: bool) -> Iterator[dict[str, Any]]:
    """Yield the settings of each run, full attention first."""
    yield {"selector_type": "full"}
    for mode in MODES:
        yield {"selector_type": "exact", "compression_mode": mode}
        for lsh in ("frequency_rank", "magicpig_baseline"):
            yield {"selector_type": "lsh", "lsh_mode": lsh, "compression_mode": mode}
        for (first, second), ratio in product(HYBRIDS, HYBRID_RATIOS):
            parts = {"hybrid_primary": first, "hybrid_secondary": second, "hybrid_ratio": ratio}
            yield {"selector_type": "hybrid", **parts, "compression_mode": mode}
    if baselines:
        yield from ({"selector_type": name, "compression_mode": "recursive"} for name in BASELINES)


def _ablate(given: argparse.Namespace) -> str:
    require_distinct("tasks", given.tasks)
    for task in given.tasks:
        require(task in TASKS, "task", task, f"one of {', '.join(TASKS)}")
    require_writable(given.save_dir)
    engine = engine_of(given)
    sizes = {"count": given.num_samples, "wording": given.wording, "seed": given.seed, "prompts": engine.prompts}
    made = [Generated(task, given.length, **sizes) for task in given.tasks]
    rows = [result(engine, changes, made, given.save_dir) for changes in grid(baselines=not given.no_baselines)]
    table = render(rows, given)
    ran = (*given.tasks, str(given.length), f"{given.num_samples}samples", engine.settings.size)
    name = file_name("ablation", *ran, *(["core"] if given.no_baselines else []))
    (given.save_dir / f"{name}.md").write_text(table + "\n", encoding="utf-8")
    draw(rows, given.save_dir / f"{name}.svg")
    return table


def result(
    engine: RecursiveCompressionEngine, changes: dict[str, Any], made: Sequence[Generated], folder: Path
) -> dict[str, Any]:
    """Run one configuration; returns its table row: method, mode, scores, and the most tokens and bytes kept."""
    common = engine.settings
    engine.settings = Settings(**(asdict(common) | changes))
    try:
        title, mode = engine.settings.title, engine.settings.compression_mode
        name = file_name(engine.settings.label)
        samples, judge = _together(made)
        records = evaluate(engine, samples, folder / f"ablation_{name}.jsonl", judge, name)
    finally:
        engine.settings = common
    return {
        "method": title,
        "mode": "" if title == "full" else mode,
        "scores": [record["score"] for record in records],
        "kept": max(record["kept_tokens"] for record in records),
        "bytes": max(record["cache_bytes"] for record in records),
    }


def _together(made: Sequence[Generated]) -> tuple[list[Sample], Judge]:
    """Combine the samples of all tasks, each judged by its own task."""
    of = {sample.id: task for task in made for sample in task.samples}
    return [sample for task in made for sample in task.samples], lambda sample, response: of[sample.id].judge(
        sample, response
    )


def render(rows: list[dict[str, Any]], given: argparse.Namespace) -> str:
    """Format the rows as Markdown: accuracy with 95 % interval, share of full attention's accuracy, and tokens kept."""
    full = sum(rows[0]["scores"]) / len(rows[0]["scores"])
    size = f"{given.compression_ratio:g} of the prompt" if given.compression_ratio else f"{given.budget} tokens"
    lines = [
        f"{', '.join(given.tasks)}; {given.length} tokens, {given.num_samples} samples per task, budget {size}, "
        f"blocks of {given.block_size}, n = {given.protection_divisor}, seed {given.seed}, model {given.model_path}",
        "",
        "| method | mode | accuracy | 95 % | of full | kept tokens | cache |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        mean, (low, high) = sum(row["scores"]) / len(row["scores"]), interval(row["scores"])
        share = f"{100 * mean / full:.0f} %" if full else ""
        lines.append(
            f"| {row['method']} | {row['mode']} | {100 * mean:.1f} % | {100 * low:.1f}-{100 * high:.1f} | {share} "
            f"| {row['kept']} | {row['bytes'] / 2**20:.2f} MiB |"
        )
    return "\n".join(lines)


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw the accuracy and interval of every run as an SVG."""
    import seaborn as sns
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 0.3 * len(rows) + 1), layout="constrained")
    FigureCanvasSVG(figure)
    axes = figure.subplots()
    names = [f"{row['method']}  {row['mode']}".strip() for row in rows]
    means = [100 * sum(row["scores"]) / len(row["scores"]) for row in rows]
    colour = sns.color_palette("colorblind")[0]
    sns.barplot(x=means, y=names, color=colour, ax=axes, errorbar=None)
    for place, row in enumerate(rows):
        low, high = interval(row["scores"])
        axes.plot([100 * low, 100 * high], [place, place], color="black", linewidth=1)
    axes.set(xlabel="accuracy, % (line: 95 % interval)", ylabel="", xlim=(0, 100))
    figure.savefig(path)


if __name__ == "__main__":
    raise SystemExit(run_interruptible(main))
