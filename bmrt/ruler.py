"""Evaluates RULER's retrieval and tracing tasks with a compressed cache (Hsieh et al. 2024).

    python -m bmrt.ruler --model_path DIR --length 4096 --num_samples 50 --compression_ratio 0.25
    python -m bmrt.ruler --model_path DIR --data ruler.jsonl ...      # context, question, answer_prefix, answer, task

RULER: https://arxiv.org/abs/2404.06654. Examples are generated (`bmrt.evaluation.generated`: RULER's nine tasks that
need no external data, and `new_york`), or come from a file or a hub data set with kvpress's columns. Prints, and writes
to <save_dir>/ruler_<tasks>_<length>_<samples>_<method>_<mode>_<size>.md, the mean percentage of reference texts that
the answers contain, with its 95 % interval.
"""

from __future__ import annotations

from attentions.common.stopping import exit_on_signal, run_interruptible

if __name__ == "__main__":
    exit_on_signal()  # before the slow imports

import argparse
from collections.abc import Iterable
from numbers import Number  # includes numpy's
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attentions.common.settings import require
from bmrt.evaluation.evaluate import Judge, Sample, evaluate, summary
from bmrt.evaluation.generated import RULER_TASKS, TASKS, Generated, printable
from bmrt.evaluation.hub import load_hub
from bmrt.evaluation.options import command, engine_of, file_name, require_distinct, require_writable, run
from bmrt.evaluation.records import read_data
from tasks.example import contained as share_contained

if TYPE_CHECKING:
    from bmrt.cache.prompts import Prompts

COLUMNS = ("context", "question", "answer_prefix", "answer", "task")


def main(arguments: list[str] | None = None) -> None:
    """Parse the arguments and run the command."""
    parser = command("ruler", "Evaluate RULER's tasks with a compressed cache.", max_new_tokens=128)
    parser.add_argument("--data", default="generated", help="'generated' (default), a .jsonl file, or a hub id")
    parser.add_argument("--tasks", nargs="+", default=list(RULER_TASKS), help=f"tasks to run, from {', '.join(TASKS)}")
    parser.add_argument("--length", type=int, default=4096, help="tokens of prompt and answer together")
    parser.add_argument("--num_samples", type=int, default=50, help="samples per task")
    parser.add_argument(
        "--wording",
        default="ruler",
        choices=("ruler", "short"),
        help="wording of the prompts; short is for small models",
    )
    run(_evaluate, parser, arguments)


def _evaluate(given: argparse.Namespace) -> str:
    require_distinct("tasks", given.tasks)
    given_rows = None if given.data == "generated" else list(_rows(given.data, given.length))
    for task in given.tasks:
        if given_rows is None:
            require(task in TASKS, "task", task, f"one of {', '.join(TASKS)}")
        else:
            from_rows(given_rows, task, given.num_samples)
    require_writable(given.save_dir)
    engine = engine_of(given)
    made = {task: _samples(given, given_rows, task, engine.prompts) for task in given.tasks}
    label, rows = engine.settings.label, []
    for task, (samples, judge) in made.items():
        path = given.save_dir / f"{file_name('ruler', task, str(given.length), label)}.jsonl"
        records = evaluate(engine, samples, path, judge, task)
        rows.append(f"| {task} | {summary([record['score'] for record in records])} |")
    table = "\n".join([f"| RULER, {given.length} tokens | {label} |", "|---|---|", *rows])
    tasks = "all" if tuple(given.tasks) == RULER_TASKS else "+".join(given.tasks)
    name = file_name("ruler", tasks, str(given.length), f"{given.num_samples}samples", label)
    path = given.save_dir / f"{name}.md"
    path.write_text(table + "\n", encoding="utf-8")
    return table


def _samples(
    given: argparse.Namespace, rows: list[dict[str, Any]] | None, task: str, prompts: Prompts
) -> tuple[list[Sample], Judge]:
    if rows is not None:
        return from_rows(rows, task, given.num_samples), contained
    made = Generated(
        task, given.length, count=given.num_samples, wording=given.wording, seed=given.seed, prompts=prompts
    )
    return made.samples, made.judge


def from_rows(rows: Iterable[dict[str, Any]], task: str, count: int) -> list[Sample]:
    """Build a task's samples from rows with kvpress's columns. Raises ValueError for a missing column or task."""
    found: list[Sample] = []
    for number, row in enumerate(rows):
        missing = [name for name in COLUMNS if name not in row]
        require(not missing, f"row {number}", sorted(row), f"an object with {', '.join(COLUMNS)}")
        texts = ("context", "question", "answer_prefix", "task")
        wrong = [name for name in texts if not isinstance(row[name], str)]
        require(not wrong, f"row {number}", wrong, "texts in these columns")
        if row["task"] == task and len(found) < count:
            question, facts = row["question"] + row["answer_prefix"], {"references": _references(row, number)}
            found.append(Sample(f"{task}-{number}", row["context"], question, ", ".join(facts["references"]), facts))
    require(bool(found), "task", task, "one contained in the data")
    return found


def _references(row: dict[str, Any], number: int) -> list[str]:
    """Return the texts that an answer must contain. Raises ValueError if there are none or one is empty."""
    given = row["answer"] if isinstance(row["answer"], list) else [row["answer"]]
    fit = all(isinstance(x, str | Number) and printable(str(x)) for x in given)
    require(
        bool(given) and fit, f"answer of row {number}", row["answer"], "a non-empty text or a list of non-empty texts"
    )
    return [str(x) for x in given]


def _rows(source: str, length: int) -> Iterable[dict[str, Any]]:
    return (
        read_data(Path(source)) if Path(source).suffix in (".json", ".jsonl") else load_hub(source, str(length), "test")
    )


def contained(sample: Sample, response: str) -> float:
    """RULER's `string_match_all`: share of reference texts in the answer, ignoring control characters and case."""
    return share_contained(sample.facts["references"], printable(response))


if __name__ == "__main__":
    raise SystemExit(run_interruptible(main))
