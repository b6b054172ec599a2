"""A training of seconds and a task for it, for the tests of training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lsh_v2.training.configuration import training_config
from tasks.example import Example, Task

if TYPE_CHECKING:
    from lsh_v2.training import TrainingConfig

TINY: dict[str, Any] = {
    "model_size": None,
    "model": {
        "d_model": 16,
        "n_heads": 2,
        "n_kv_heads": 1,
        "n_layers": 2,
        "weight_tied_layers": 1,
        "feed_forward_dim": 16,
        "attention": "flash",
    },
    "task": "tests.lsh_v2.tiny_training:Echo",
    "pack": False,
    "seq_length": 64,
    "batch_size": 4,
    "num_epochs": 2,
    "num_train_sequences": 20,
    "num_eval_sequences": 6,
    "num_answers": 4,
    "max_answer_tokens": 8,
    "checkpoint_every": 2,
    "warmup_steps": 3,
    "learning_rate": 1e-2,
    "profile_components": False,
    "device": "cpu",
}


class Echo(Task):
    """Say a digit again."""

    def example(self, index: int) -> Example:
        digit = str(self.draw(index).randrange(10))
        return Example(f"say {digit}:", f" {digit}", {"task": "echo", "index": index})

    def chance(self, example: Example) -> float:
        return 0.1


def tiny(out: Path, **changes: Any) -> TrainingConfig:
    return training_config(TINY | {"out": str(out)} | changes)


def steps_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "steps.jsonl").read_text().splitlines()]
