"""The examples that a training reads, written beforehand: as many as its rows take, and those that it is judged by.

    python -m lsh_v2.pipeline_data lsh_v2/train.yml data/results data/results/train.jsonl data/results/eval.jsonl

Arguments: the configuration, the folder that the training will have (a tokenizer made for it stays there), two files.
A training with these as `train_file` and `eval_file` reads the rows that it would otherwise have made itself.
"""

from __future__ import annotations

from attentions.stopping import exit_on_signal, run_interruptible

if __name__ == "__main__":
    exit_on_signal()  # before the imports that take long

import argparse
import sys
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from lsh_v2.endings import end
from lsh_v2.training import TrainingConfig, load_training_config
from lsh_v2.training.checks import require_possible
from lsh_v2.training.data import made_task
from lsh_v2.training.tokenizer import EXAMPLES, tokenizer_of
from tasks.encoding import encode
from tasks.example import Task
from tasks.jsonl import write_examples
from tasks.tokenizer import Tokenizer


def main(arguments: Sequence[str] | None = None) -> int:
    """Write both files, and say how many examples they hold."""
    parser = argparse.ArgumentParser(prog="python -m lsh_v2.pipeline_data", description="Write a training's examples.")
    parser.add_argument("config", type=Path, help="the YAML file of a training")
    parser.add_argument("out", type=Path, help="the folder that the training will have")
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
    """How many examples, from the first on, the rows look at, and the tokenizer or the grading beside them."""
    rows = config.num_eval_sequences if evaluation else config.num_train_sequences
    beside = config.num_answers if evaluation else (EXAMPLES if config.tokenizer == "trained" else 0)
    if not config.pack:
        return max(rows, beside)
    room, deepest = dict.fromkeys(range(rows), config.seq_length), 0
    while room:  # every row looks at one example more than it holds
        for row in list(room):
            room[row] -= len(encode(task.example(row + deepest * rows), tokenizer, learn=config.learn).input_ids)
            if room[row] < 0:
                del room[row]
        deepest += 1
    return max(rows * deepest, beside)


if __name__ == "__main__":
    sys.exit(run_interruptible(main))
