"""Evaluates the stored tiny BitNet on held-out text and examples and prints a table.

python -m models.tiny_bitnet_exam --lengths 384 1024 2048 --examples 100
"""

from __future__ import annotations

from attentions.common.stopping import exit_on_signal, run_interruptible

if __name__ == "__main__":
    exit_on_signal()  # before the slow imports

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from scipy.stats import binomtest

from harness.common.command_line import count
from harness.results.run_dir import require_folder
from lsh_bitnet.commands import Parser, run
from lsh_bitnet.models import load_model, require_length
from models.tiny_bitnet import evaluate
from models.tiny_bitnet_data import checks, split_text
from tasks.new_york import NewYork

if TYPE_CHECKING:
    from tasks.example import Task
    from tasks.text import TextBytes

LEAST = 384  # tokens; the minimum for an example of every task
TITLES = {
    "bits_per_byte": "bits per byte",
    "needles": "needles",
    "new_york_1": "New York, 1st mention of 2, among 2 other cities",
    "new_york_2": "New York, 2nd mention of 3, among 2 other cities",
    "alone_1": "New York, 1st mention of 2, no other city",
    "alone_2": "New York, 2nd mention of 3, no other city",
    "mqar": "MQAR, tokens",
}


def table(lengths: list[int], examples: int, work: Path, text_tokens: int) -> str:
    """Return a Markdown table, one row per task and one column per length; accuracies with Wilson's 95 % interval."""
    loaded = load_model("tiny-bitnet")
    require_length(loaded, max(lengths))
    model, (_, held_out) = loaded.model, split_text(work, 0.05)
    columns = []
    for length in lengths:
        tasks = checks(length, held_out) | new_york(length, held_out)
        found = evaluate(model, length, held_out, examples=examples, text_tokens=text_tokens, tasks=tasks)
        columns.append([_cell(name, found[name], examples) for name in TITLES])
    heads = ["held out", *(f"{length:,} tokens" for length in lengths)]
    body = [[title, *cells] for title, cells in zip(TITLES.values(), zip(*columns, strict=True), strict=True)]
    return "\n".join(f"| {' | '.join(line)} |" for line in [heads, ["---"] + ["---:"] * len(lengths), *body])


def new_york(length: int, text: TextBytes, seed: int = 1_000) -> dict[str, Task]:
    """Return tasks for the first and the second mention, followed by one more, with and without other cities."""
    return {
        f"{name}_{nth}": NewYork(
            length, nth=nth, mentions=nth + 1, decoys=decoys, wording="short", text=text, seed=seed
        )
        for name, decoys in (("new_york", 2), ("alone", 0))
        for nth in (1, 2)
    }


def _cell(name: str, value: float, examples: int) -> str:
    if name == "bits_per_byte":
        return f"{value:.2f}"
    if name == "mqar":
        return f"{value:.0%}"
    interval = binomtest(round(value * examples), examples).proportion_ci(0.95, method="wilson")
    return f"{value:.0%} ({interval.low:.0%} to {interval.high:.0%})"


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = Parser(prog="python -m models.tiny_bitnet_exam", description="Evaluate the stored tiny BitNet.")
    parser.add_argument(
        "--lengths", type=count(LEAST), nargs="+", default=[384, 1024, 2048], help=f"tokens; at least {LEAST}"
    )
    parser.add_argument("--examples", type=count(1), default=100, help="of each task and length")
    parser.add_argument("--text-tokens", type=count(1), default=65_536, help="of text, for bits per byte")
    parser.add_argument("--work", type=Path, default=Path("data/tiny-bitnet"), help="folder for the text")
    given = parser.parse_args(arguments)

    def work() -> int:
        require_folder(given.work, "--work")
        with torch.compiler.set_stance("force_eager"):
            print(table(given.lengths, given.examples, given.work, given.text_tokens))
        return 0

    return run(parser, work)


if __name__ == "__main__":
    raise SystemExit(run_interruptible(main))
