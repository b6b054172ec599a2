"""Evaluates Evaluate BABILong with a compressed cache.

    python -m bmrt.babilong --model_path DIR --dataset_config 4k --tasks qa1 qa2 --compression_ratio 0.25
    python -m bmrt.babilong --model_path DIR --data generated ...        # no network

Writes <save_dir>/<task>_<length>_<method>_<mode>_<size>.csv (target, output, question) and the records behind it, and
prints accuracy with its 95 % interval.
"""

from __future__ import annotations

from attentions.common.stopping import exit_on_signal, run_interruptible

if __name__ == "__main__":
    exit_on_signal()  # before the slow imports

import argparse
import csv
from pathlib import Path
from typing import Any

from bmrt.evaluation.babilong_data import HUB, right, samples_of
from bmrt.evaluation.evaluate import evaluate, summary
from bmrt.evaluation.options import command, engine_of, file_name, require_distinct, require_writable, run
from bmrt.evaluation.records import read_jsonl


def main(arguments: list[str] | None = None) -> None:
    """Parse the arguments and run the command."""
    parser = command("babilong", "Evaluate BABILong with a compressed cache.", max_new_tokens=20)
    parser.add_argument("--data", default=HUB, help=f"hub id (default: {HUB}), a .jsonl file, or 'generated'")
    parser.add_argument("--dataset_config", default="16k", help="context length: 0k, 1k, ... 10M")
    parser.add_argument("--tasks", nargs="+", default=["qa1"], help="tasks qa1 to qa20 (generated: only qa1 and qa2)")
    parser.add_argument("--num_samples", type=int, default=100, help="number of samples (default: 100)")
    parser.add_argument("--start_sample_index", type=int, default=0, help="index of the first sample (default: 0)")
    run(_evaluate, parser, arguments)


def _evaluate(given: argparse.Namespace) -> str:
    require_distinct("tasks", given.tasks)
    sizes = {"start": given.start_sample_index, "count": given.num_samples, "seed": given.seed}
    made = {task: samples_of(given.data, config=given.dataset_config, split=task, **sizes) for task in given.tasks}
    require_writable(given.save_dir)
    engine, lines = engine_of(given), []
    for task, samples in made.items():
        name = file_name(task, given.dataset_config, engine.settings.label)
        records = evaluate(engine, samples, given.save_dir / f"{name}.jsonl", right, task)
        # Write all answers so far, so that a run with fewer or other samples removes none.
        _write_csv(given.save_dir / f"{name}.csv", read_jsonl(given.save_dir / f"{name}.jsonl"))
        lines.append(f"{name}: {summary([record['score'] for record in records])}")
    return "\n".join(lines)


def _write_csv(path: Path, records: list[dict[str, Any]]) -> None:
    # An answer may end in half of a surrogate pair, which UTF-8 cannot encode.
    with path.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        writer = csv.writer(file)
        writer.writerow(["target", "output", "question"])
        writer.writerows([record["target"], record["response"], record["question"]] for record in records)


if __name__ == "__main__":
    raise SystemExit(run_interruptible(main))
