"""Checks a training configuration before the first step, so that mistakes do not surface hours later."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from harness.config.yaml_source import ConfigError
from harness.results.run_dir import require_folder
from lsh_v2.training.data import made_task
from lsh_v2.training.trackers import require_installed
from tasks.encoding import encode, encode_prompt

if TYPE_CHECKING:
    from lsh_v2.training.configuration import TrainingConfig
    from tasks.example import Task
    from tasks.tokenizer import Tokenizer

TRIED = 100  # examples whose length is checked


def require_possible(config: TrainingConfig) -> None:
    """Raise ConfigError with one line per mistake in precision, task, files, trackers, and folder."""
    if mistakes := mistakes_of_training(config):
        raise ConfigError(mistakes, "the training configuration")


def mistakes_of_training(config: TrainingConfig) -> list[str]:
    """Return the lines of `require_possible`, none if there are no mistakes. Writes nothing."""
    mistakes = []
    if config.mixed_precision == "fp16" and not _has_gpu(config):
        mistakes.append('mixed_precision: fp16 is not allowed on a CPU; use "no" or bf16')
    for name in ("train_file", "eval_file"):
        path = getattr(config, name)
        if path is not None and not Path(path).is_file():
            mistakes.append(f"{name}: there is no file {path}")
    checks = (
        lambda: made_task(config, evaluation=False),
        lambda: require_installed(config.trackers),
        lambda: require_folder(Path(config.out), "out"),
    )
    for check in checks:
        try:
            check()
        except ValueError as error:
            mistakes.append(str(error))
    return mistakes


def require_room(config: TrainingConfig, tokenizer: Tokenizer, training: Task, held_out: Task) -> None:
    """Raise ValueError if one of the first examples exceeds `seq_length` or leaves no room for a graded answer."""
    limit = config.seq_length
    for name, task, count in (
        ("training", training, config.num_train_sequences),
        ("held-out", held_out, config.num_eval_sequences),
    ):
        for index, example in enumerate(islice(task.stream(), min(count, TRIED))):
            _require(name, index, len(encode(example, tokenizer, learn=config.learn).input_ids), limit)
    for index, example in enumerate(islice(held_out.stream(), config.num_answers)):
        _require("held-out", index, len(encode_prompt(example, tokenizer)) + 1, limit)


def _has_gpu(config: TrainingConfig) -> bool:
    return config.device != "cpu" and torch.accelerator.is_available()


def _require(name: str, index: int, tokens: int, limit: int) -> None:
    if tokens > limit:
        raise ValueError(f"{name} example {index} has {tokens} tokens, more than seq_length={limit}")
