"""Configuration of the long arena: lengths, limits, attentions by name, and tasks by import path."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError

from harness.config.backends import LabelledBackend, entry_mistakes, label_clashes, series_of
from harness.config.errors import mistakes_of
from harness.config.grid import Axis, Backend, Checked, Line, Size
from harness.config.yaml_source import ConfigError, apply_overrides, read_mapping
from harness.results.run_dir import require_folder
from harness.runner.plan import resolve_device
from lsh_v2.common.configuration import A_SIZE, ModelConfig, model_config
from lsh_v2.model.sizes import sized_config
from lsh_v2.training.checks import mistakes_of_training
from lsh_v2.training.configuration import TrainingConfig, training_config

FULL = Path(__file__).parents[1] / "long_arena.yml"
BYTES = 259  # tokens of tasks.byte_tokenizer


def _as_tuple(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


def _rising(lengths: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(sorted(lengths))


class ArenaTask(Checked):
    """A task and the length at which it is learned; `training` overrides keys of the arena's training."""

    task: Line = Field(description="package.module:Name of a task")
    settings: dict[str, Any] = Field(default_factory=dict, description="a mapping of the task's settings")
    seq_length: Size = Field(description=A_SIZE)
    training: dict[str, Any] = Field(default_factory=dict, description="a mapping of keys of the training")


class ArenaConfig(Checked):
    """Configuration of the long arena. Frozen; unknown keys are rejected. `long_arena.yml` documents each key."""

    attentions: Annotated[tuple[Backend, ...], BeforeValidator(_as_tuple), Field(min_length=1)] = Field(
        description="a list of names and of mappings {name: …, label: …, settings …}"
    )
    sequence_lengths: Annotated[Axis[Size], AfterValidator(_rising)] = Field(
        description="an integer of at least 1, or a list of these"
    )
    num_samples_per_length: Size = Field(description=A_SIZE)
    max_memory_gb: Annotated[float, Field(gt=0)] = Field(description="gigabytes above 0")
    timeout_seconds: Annotated[float, Field(gt=0)] = Field(description="a number of seconds above 0")
    model_size: Line | None = Field(None, description="null (as set by `model`) or a size such as 25M")
    model: dict[str, Any] = Field(default_factory=dict, description="a mapping of the model's keys")
    checkpoint: Line | None = Field(None, description="null or the folder of a checkpoint or run")
    dtype: Literal["float32", "bfloat16", "float16"] = Field("float32", description="float32, bfloat16 or float16")
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$")] = Field("auto", description="auto, cpu or cuda")
    threads: Size | None = Field(None, description="null (all cores) or an integer of at least 1")
    tasks: dict[str, ArenaTask] = Field(default_factory=dict, description="a mapping of names to tasks")
    training: dict[str, Any] = Field(default_factory=dict, description="a mapping of keys of the training")
    training_timeout_seconds: Annotated[float, Field(gt=0)] = Field(description="a number of seconds above 0")
    seed: Annotated[int, Field(ge=0)] = Field(0, description="an integer of at least 0")
    out: Line = Field("data/results/benchmark", description="the path of a folder")

    def series(self) -> list[LabelledBackend]:
        """Return the attentions, each with its settings and a unique label."""
        return series_of(self.attentions, "attentions")

    def model_of(self, one: LabelledBackend, n: int) -> ModelConfig:
        """Return the configuration of the model that is timed with this attention at this length."""
        keys = {"vocab_size": BYTES, "max_seq_len": n, "seed": self.seed} | self.model | attention_keys(one)
        return model_config(**keys) if self.model_size is None else sized_config(self.model_size, **keys)

    def training_of(self, name: str, one: LabelledBackend, out: Path) -> TrainingConfig:
        """Return the training configuration of a task with an attention, with its output below `out`."""
        task = self.tasks[name]
        raw = {**self.training, **task.training}
        raw["model"] = {**self.training.get("model", {}), **task.training.get("model", {}), **attention_keys(one)}
        raw |= {"task": task.task, "task_settings": task.settings, "seq_length": task.seq_length}
        raw |= {"seed": self.seed, "device": "cpu" if self.device == "cpu" else "auto"}
        return training_config({**raw, "out": str(out)}, f"tasks.{name}")


def attention_keys(one: LabelledBackend) -> dict[str, Any]:
    """Return the keys of the model configuration that a series sets."""
    return {"attention": one.backend, "attention_settings": one.settings}


def load_arena_config(path: Path = FULL, overrides: Sequence[str] = ()) -> ArenaConfig:
    """Read a YAML file and apply the overrides (`a.b=value`).

    Raises ConfigError with one line per mistake, including those in attentions, tasks, models, and trainings, so that
    no run fails on them hours later.
    """
    raw = apply_overrides(read_mapping(path), overrides, ())
    try:
        config = ArenaConfig.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(mistakes_of(error, ArenaConfig, raw), str(path)) from error
    if mistakes := _mistakes(config):
        raise ConfigError(mistakes, str(path))
    return config


def _mistakes(config: ArenaConfig) -> list[str]:
    mistakes = [] if resolve_device(config.device) else [f"device: '{config.device}' is not available on this machine"]
    try:
        require_folder(Path(config.out), "out")
    except ValueError as error:
        mistakes.append(str(error))
    for index, entry in enumerate(config.attentions):
        mistakes += entry_mistakes(entry, f"attentions.{index}")
    if mistakes:
        return list(dict.fromkeys(mistakes))
    mistakes += label_clashes(config.series())
    for one in config.series():
        try:
            config.model_of(one, max(config.sequence_lengths))
            for name in config.tasks:
                training = config.training_of(name, one, Path(config.out) / "training")
                mistakes += [f"tasks.{name}: {mistake}" for mistake in mistakes_of_training(training)]
        except ValueError as error:
            mistakes.append(f"{one.path}: {error}")
    return list(dict.fromkeys(mistakes))
