"""RULER's retrieval and tracing tasks with a compressed cache (Hsieh et al. 2024, https://arxiv.org/abs/2404.06654).

    python -m bmrt.ruler --model_path DIR --length 4096 --num_samples 50 --compression_ratio 0.25
    python -m bmrt.ruler --model_path DIR --data ruler.jsonl ...      # context, question, answer_prefix, answer, task

Examples are generated here (`tasks.needles`, `tasks.variable_tracking`: RULER's nine tasks that need no other data), or
come from a file or a hub data set with kvpress's columns. Prints, and writes to <save_dir>/ruler_<method>.md, the mean
share of reference texts that the answers contain, in percent, with its 95 % interval.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from attentions.base import require
from bmrt.babilong_data import load_hub
from bmrt.evaluation import Sample, evaluate, summary
from bmrt.options import command, engine_of, run
from bmrt.records import read_jsonl
from tasks.example import Example, Task
from tasks.needles import RULER, Needles
from tasks.variable_tracking import VariableTracking

TASKS = (*RULER, "vt")
COLUMNS = ("context", "question", "answer_prefix", "answer", "task")


def main(arguments: list[str] | None = None) -> None:
    """Parse and run."""
    parser = command("ruler", "RULER's tasks with a compressed cache.", max_new_tokens=128)
    parser.add_argument("--data", default="generated", help="'generated' (default), a .jsonl file, or a hub id")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), help=f"of {', '.join(TASKS)}")
    parser.add_argument("--length", type=int, default=4096, help="tokens of prompt and answer")
    parser.add_argument("--num_samples", type=int, default=50, help="a task")
    parser.add_argument("--wording", default="ruler", choices=("ruler", "short"), help="short: for small models")
    run(_evaluate, parser, arguments)


def _evaluate(given: argparse.Namespace) -> str:
    if given.data == "generated":
        for task in given.tasks:
            require(task in TASKS, "task", task, f"one of {', '.join(TASKS)}")
    engine = engine_of(given)
    method = engine.settings.title.replace(" ", "_")
    rows = []
    for task in given.tasks:
        samples = _samples(given, task, engine.prompts)
        path = given.save_dir / f"ruler_{task}_{given.length}_{method}.jsonl"
        records = evaluate(engine, samples, path, contained, task)
        rows.append(f"| {task} | {summary([record['score'] for record in records])} |")
    table = "\n".join([f"| RULER, {given.length} tokens | {method} |", "|---|---|", *rows])
    (given.save_dir / f"ruler_{method}.md").write_text(table + "\n", encoding="utf-8")
    return table


def _samples(given: argparse.Namespace, task: str, prompts: Any) -> list[Sample]:
    if given.data != "generated":
        return from_rows(_rows(given.data, given.length), task, given.num_samples)
    source = generator(task, given.length, wording=given.wording, seed=given.seed, tokenizer=CountedBy(prompts))
    return [sample_of(source.example(i), f"{task}-{i}") for i in range(given.num_samples)]


class CountedBy:
    """A model's tokenizer as `tasks` know it, to fill a length exactly; it only ever counts."""

    pad_id = bos_id = eos_id = vocab_size = 0

    def __init__(self, prompts: Any) -> None:
        self.count = prompts.count
        self.encode = self.decode = prompts.count


def generator(task: str, length: int, **settings: Any) -> Task:
    """A task of RULER by name."""
    if task == "vt":
        return VariableTracking(length, shot=settings["wording"] == "ruler", **settings)
    return Needles(length, **{**RULER[task], **settings})


def sample_of(example: Example, name: str) -> Sample:
    """The last line is the question; all before it is the context."""
    context, line, question = example.prompt.rpartition("\n")
    references = [str(reference) for reference in example.metadata["references"]]
    return Sample(name, context + line, question, example.answer, {"references": references})


def from_rows(rows: Iterable[dict[str, Any]], task: str, count: int) -> list[Sample]:
    """Samples of a task from kvpress's columns. Raises ValueError for a row that lacks one and an absent task."""
    found: list[Sample] = []
    for number, row in enumerate(rows):
        missing = [name for name in COLUMNS if name not in row]
        require(not missing, f"row {number}", sorted(row), f"an object with {', '.join(COLUMNS)}")
        if row["task"] == task and len(found) < count:
            references = row["answer"] if isinstance(row["answer"], list) else [row["answer"]]
            question, facts = row["question"] + row["answer_prefix"], {"references": [str(x) for x in references]}
            found.append(Sample(f"{task}-{number}", row["context"], question, ", ".join(facts["references"]), facts))
    require(bool(found), "task", task, "one that the data has")
    return found


def _rows(source: str, length: int) -> Iterable[dict[str, Any]]:
    return (
        read_jsonl(Path(source))
        if Path(source).suffix in (".json", ".jsonl")
        else load_hub(source, str(length), "test")
    )


def contained(sample: Sample, response: str) -> float:
    """RULER's `string_match_all`: the share of reference texts in the answer, control characters and case apart."""
    said = re.sub(r"[\x00-\x1f]", "\n", response).strip().lower()
    references = sample.facts["references"]
    return sum(reference.lower() in said for reference in references) / len(references)


if __name__ == "__main__":
    main()
