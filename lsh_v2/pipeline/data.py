"""Writes the examples that a training run reads: enough for its rows, and those for evaluation.

    python -m lsh_v2.pipeline.data lsh_v2/train.yml data/results data/results/train.jsonl data/results/eval.jsonl

Arguments: the configuration, the folder of the training (where a tokenizer trained here is kept), and the two files.
With these as `train_file` and `eval_file`, training reads the same rows that it would otherwise generate.
"""

from __future__ import annotations

from attentions.common.stopping import exit_on_signal, run_interruptible

if __name__ == "__main__":
    exit_on_signal()  # before the slow imports

import argparse
import sys
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from lsh_v2.common.endings import end
from lsh_v2.training.checks import require_possible
from lsh_v2.training.configuration import TrainingConfig, load_training_config
from lsh_v2.training.data import made_task
from lsh_v2.training.tokenizer import EXAMPLES, tokenizer_of
from tasks.encoding import encode
from tasks.jsonl import write_examples

if TYPE_CHECKING:
    from tasks.example import Task
    from tasks.tokenizer import Tokenizer


def main(arguments: Sequence[str] | None = None) -> int:
    """Write both files and print how many examples they hold."""
    parser = argparse.ArgumentParser(prog="python -m lsh_v2.pipeline.data", description="Write a training's examples.")
    parser.add_argument("config", type=Path, help="the YAML file of the training")
    parser.add_argument("out", type=Path, help="the output folder of the training")
    parser.add_argument("train_file", type=Path, help="the file of training examples to write")
    parser.add_argument("eval_file", type=Path, help="the file of held-out examples to write")
    given = parser.parse_args(arguments)
    try:
        config = load_training_config(given.config, [f"out={given.out}"])
        require_possible(config)
        tokenizer = tokenizer_of(config)
        for path, evaluation in ((given.train_file, False), (given.eval_file, True)):
            task = made_task(config, evaluation=evaluation)
            count = needed(config, task, tokenizer, evaluation=evaluation)
            print(f"{write_examples(path, islice(task.stream(), count))} examples in {path}", flush=True)
    except (Exception, KeyboardInterrupt) as error:
        return end(error, given.out)
    return 0


def needed(config: TrainingConfig, task: Task, tokenizer: Tokenizer, *, evaluation: bool) -> int:
    """Return how many examples the rows read from the start, or the tokenizer or the grading if they read more."""
    rows = config.num_eval_sequences if evaluation else config.num_train_sequences
    beside = config.num_answers if evaluation else (EXAMPLES if config.tokenizer == "trained" else 0)
    if not config.pack:
        return max(rows, beside)
    room, deepest = dict.fromkeys(range(rows), config.seq_length), 0
    while room:  # every row reads one example more than it holds
        for row in list(room):
            room[row] -= len(encode(task.example(row + deepest * rows), tokenizer, learn=config.learn).input_ids)
            if room[row] < 0:
                del room[row]
        deepest += 1
    return max(rows * deepest, beside)


if __name__ == "__main__":
    sys.exit(run_interruptible(main))
