"""Answers one or a few samples of BABILong and prints whether each answer is correct.

    python -m bmrt.run_single_sample --model_path DIR --method exact --budget 4096 --protection_divisor 4
    python -m bmrt.run_single_sample --model_path DIR --method hybrid --hybrid_ratio 0.6 --compression_ratio 0.25 \
        --data generated --dataset_config 4k

Prints question, target, and answer of each sample, and appends one result line to `--results_file`.
"""

from __future__ import annotations

from attentions.common.stopping import exit_on_signal, run_interruptible

if __name__ == "__main__":
    exit_on_signal()  # before the slow imports

import argparse
from datetime import datetime
from pathlib import Path

from bmrt.evaluation.babilong_data import HUB, right, samples_of
from bmrt.evaluation.evaluate import evaluate
from bmrt.evaluation.options import command, engine_of, file_name, require_writable, run


def main(arguments: list[str] | None = None) -> None:
    """Parse the arguments and run the command."""
    parser = command("run_single_sample", "Answer one BABILong sample with a compressed cache.", max_new_tokens=100)
    parser.add_argument("--data", default=HUB, help=f"hub id (default: {HUB}), a .jsonl file, or 'generated'")
    parser.add_argument("--dataset_config", default="16k", help="context length: 0k, 1k, ... 10M")
    parser.add_argument("--dataset_split", default="qa1", help="task, qa1 to qa20 (generated: only qa1 and qa2)")
    parser.add_argument("--start_sample_index", type=int, default=0, help="index of the first sample (default: 0)")
    parser.add_argument("--num_samples", type=int, default=1, help="number of samples (default: 1)")
    parser.add_argument(
        "--results_file", type=Path, help="file that gets one line per run (default: <save_dir>/results.txt)"
    )
    run(_answer, parser, arguments)


def _answer(given: argparse.Namespace) -> str:
    data = f"{given.dataset_config}/{given.dataset_split}"
    samples = samples_of(
        given.data,
        config=given.dataset_config,
        split=given.dataset_split,
        start=given.start_sample_index,
        count=given.num_samples,
        seed=given.seed,
    )
    require_writable(given.save_dir)
    results = given.results_file or given.save_dir / "results.txt"
    require_writable(results.parent, "results_file")
    with results.open("a", encoding="utf-8"):
        pass  # check that it is writable before loading anything
    engine = engine_of(given)
    method = engine.settings.title.replace(" ", "_")
    now = datetime.now().astimezone()
    dataset = (given.dataset_config, given.dataset_split)
    name = file_name("single", *dataset, engine.settings.label, now.isoformat().replace(":", ""))
    path = given.save_dir / f"{name}.jsonl"
    records = evaluate(engine, samples, path, right, data)
    correct = sum(record["score"] for record in records)
    line = (
        f"{now.isoformat(timespec='seconds')} | model={given.model_path} | dataset={data} | method={method} "
        f"| mode={engine.settings.compression_mode} | budget={records[-1]['budget']} "
        f"| correct={correct:g}/{len(records)} | accuracy={100 * correct / len(records):.2f}%"
    )
    with results.open("a", encoding="utf-8") as file:
        file.write(line + "\n")
    shown = [f"{r['question']}  target: {r['target']}  answer: {r['response'].strip()!r}" for r in records]
    return "\n".join([*shown, line])


if __name__ == "__main__":
    raise SystemExit(run_interruptible(main))
