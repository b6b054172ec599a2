"""The training configuration: the original guide's keys with its values, and further keys of a run.

`lsh_v2/train.yml` documents every key; `--set a.b=value` changes one.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError

from harness.config.errors import mistakes_of
from harness.config.grid import Checked, Line, Size
from harness.config.yaml_source import ConfigError, apply_overrides, read_mapping
from lsh_v2.common.configuration import A_SEED, A_SIZE, A_SWITCH, ModelConfig, Seed, model_config
from lsh_v2.model.sizes import sized_config

A_NUMBER = "a number above 0"
A_FILE = "null or the path of a .jsonl file"
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]
Tracker = Literal["tensorboard", "wandb", "mlflow"]


def _tuple(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


class TrainingConfig(Checked):
    """Configuration of a training run. Frozen; unknown keys are rejected. `train.yml` documents each key."""

    model_size: str | None = Field(default="100M", description="null (as set by `model`) or a size such as 25M")
    model: dict[str, Any] = Field(default_factory=dict, description="a mapping of the model's keys")
    tokenizer: Line = Field(default="bytes", description="bytes, trained, or a path or Hugging Face name")
    tokenizer_size: int = Field(default=512, ge=300, description="an integer of at least 300")
    task: Line = Field(default="tasks.synthetic:computational_reasoning", description="package.module:Name of a task")
    task_settings: dict[str, Any] = Field(default_factory=dict, description="a mapping of the task's settings")
    train_file: Line | None = Field(default=None, description=A_FILE)
    eval_file: Line | None = Field(default=None, description=A_FILE)
    learn: Literal["answer", "spans", "all"] = Field(default="answer", description="answer, spans or all")
    pack: bool = Field(default=True, description=A_SWITCH)

    seq_length: Size = Field(default=131_072, description=A_SIZE)
    batch_size: Size = Field(default=1, description=A_SIZE)
    num_epochs: Size = Field(default=5, description=A_SIZE)
    num_train_sequences: Size = Field(default=1000, description=A_SIZE)
    num_eval_sequences: Size = Field(default=100, description=A_SIZE)
    num_answers: Count = Field(default=100, description="an integer of at least 0")
    max_answer_tokens: Size = Field(default=256, description=A_SIZE)
    num_workers: int = Field(default=0, ge=0, le=1024, description="an integer from 0 to 1024")

    learning_rate: Positive = Field(default=1e-4, description=A_NUMBER)
    gate_learning_rate: Positive = Field(default=1e-2, description=A_NUMBER)
    warmup_steps: Count = Field(default=100, description="an integer of at least 0")
    weight_decay: float = Field(default=0.1, ge=0, description="a number of at least 0")
    gradient_clip: Positive = Field(default=1.0, description=A_NUMBER)
    gradient_checkpoint: bool = Field(default=True, description=A_SWITCH)
    mixed_precision: Literal["no", "bf16", "fp16"] = Field(default="no", description='"no", bf16 or fp16')

    profile_components: bool = Field(default=True, description=A_SWITCH)
    checkpoint_every: Size = Field(default=100, description=A_SIZE)
    keep_checkpoints: Size = Field(default=2, description=A_SIZE)
    trackers: Annotated[tuple[Tracker, ...], BeforeValidator(_tuple)] = Field(
        default=("tensorboard",), description="a list of tensorboard, wandb and mlflow"
    )
    project: Line = Field(default="lsh_v2", description="a name")
    device: Literal["auto", "cpu"] = Field(default="auto", description="auto or cpu")
    seed: Seed = Field(default=0, description=A_SEED)
    resume_other_code: bool = Field(default=False, description=A_SWITCH)
    out: Line = Field(default="data/results", description="the path of a folder")

    def model_of(self, vocab_size: int) -> ModelConfig:
        """Return the model's configuration. Raises ConfigError, and ValueError for a size that cannot be reached."""
        derived = {"vocab_size": vocab_size, "max_seq_len": self.seq_length, "seed": self.seed}
        keys = derived | {"gradient_checkpoint": self.gradient_checkpoint} | self.model
        return model_config(**keys) if self.model_size is None else sized_config(self.model_size, **keys)


# Keys that may change when a run resumes without changing its result.
INCIDENTAL = frozenset(
    {
        "out",
        "num_workers",
        "trackers",
        "project",
        "checkpoint_every",
        "keep_checkpoints",
        "train_file",  # identified by content
        "eval_file",
        "resume_other_code",
    }
)


def training_config(raw: dict[str, Any], source: str = "the training configuration") -> TrainingConfig:
    """Return a validated configuration. Raises ConfigError with one line per mistake, including those in `model`."""
    try:
        config = TrainingConfig.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(mistakes_of(error, TrainingConfig, raw), source) from error
    try:
        config.model_of(vocab_size=259)
    except ConfigError as error:
        raise ConfigError([f"model.{mistake}" for mistake in error.mistakes], source) from error
    return config


def load_training_config(path: Path, overrides: Sequence[str] = ()) -> TrainingConfig:
    """Read a YAML file and apply the overrides (`a.b=value`). Raises ConfigError."""
    return training_config(apply_overrides(read_mapping(path), overrides, ()), str(path))


def plain(config: TrainingConfig) -> dict[str, Any]:
    """Return a configuration as it reads back from JSON."""
    return json.loads(config.model_dump_json())


def differences(one: dict[str, Any], two: dict[str, Any]) -> list[str]:
    """Return the keys, except incidental ones, in which two configurations as plain data differ."""
    return sorted(key for key in one.keys() | two.keys() if key not in INCIDENTAL and one.get(key) != two.get(key))
