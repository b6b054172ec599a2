"""Schemas of the files that this package writes and reads back, so that damage is detected and reported.

A schema lists the keys that are read; other keys are kept unchanged.
"""

from __future__ import annotations

from typing import Annotated, Any, Self, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from harness.config.errors import reason_of
from harness.config.yaml_source import dotted
from lsh_v2.common.configuration import ModelConfig

Positive = Annotated[float, Field(gt=0)]
SCALER = frozenset({"scale", "growth_factor", "backoff_factor", "growth_interval", "_growth_tracker"})  # torch's


class JsonObject(BaseModel):
    """A JSON object in a file. Types are strict, and numbers must be finite."""

    model_config = ConfigDict(frozen=True, extra="allow", strict=True, allow_inf_nan=False)


T = TypeVar("T")
Schema = TypeVar("Schema", bound=JsonObject)
Unbounded = Annotated[float, Field(allow_inf_nan=True)]  # an interval may be open on one side


def _two_numbers(value: list[float]) -> list[float]:
    if len(value) != 2:
        raise ValueError("it must be two numbers")
    return value


def _non_empty(value: list[T]) -> list[T]:
    if not value:
        raise ValueError("it must not be empty")
    return value


Interval = Annotated[list[Unbounded], AfterValidator(_two_numbers)]
Losses = Annotated[list[float], AfterValidator(_non_empty)]


class StepMetrics(JsonObject):
    """Metrics of one training step; further metrics are allowed."""

    __pydantic_extra__: dict[str, float]  # type: ignore[reportIncompatibleVariableOverride]

    step: int = Field(ge=1)
    epoch: int = Field(ge=0)
    loss: float


class Grade(JsonObject):
    """Grading results for one kind of example."""

    score: float
    standard_error: float
    chance: float
    examples: Positive


class AnswerGrade(Grade):
    """A grade with the fraction of answers that equal the reference."""

    exact: float


class RunIdentity(JsonObject):
    """The configuration and hashes that identify a run."""

    config: dict[str, Any]
    identity: dict[str, str]


class FlagMetrics(JsonObject):
    """The part of the training metrics that the success flags use."""

    finished: bool
    loss_train: Losses
    loss_drop_interval: Interval | None = None
    accuracy: dict[str, Grade]


class TrainingMetrics(FlagMetrics, RunIdentity):
    """Contents of training_metrics.json."""

    accuracy: dict[str, AnswerGrade]  # type: ignore[assignment]
    attention: str
    parameters: int
    loss_eval: Losses
    seconds: float
    model: dict[str, Any]
    steps: Annotated[list[StepMetrics], AfterValidator(_non_empty)]


class CheckpointState(JsonObject):
    """Contents of a checkpoint's state.json."""

    model: ModelConfig
    step: int = Field(ge=0)
    sha256: dict[str, str]


class TrainingState(CheckpointState, RunIdentity):
    """A checkpoint state from which training can resume."""

    seconds: float = Field(ge=0)
    tokens: int = Field(ge=0)
    steps: list[StepMetrics]
    loss_eval: list[float]
    scaler: dict[str, int | float] | None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len(self.steps) != self.step or any(one.step != number for number, one in enumerate(self.steps, 1)):
            raise ValueError(f"steps must be 1 to {self.step}")
        if self.scaler and self.scaler.keys() != SCALER:
            raise ValueError(f"scaler must hold {', '.join(sorted(SCALER))}")
        return self


class TokenizerOrigin(JsonObject):
    """What a trained tokenizer was made from: its size, and hashes of the texts, the code, and the resulting files."""

    tokenizer_size: int
    texts: str
    code: str
    files: str


class ArenaCost(JsonObject):
    """The cost of one attention at one length in the long arena."""

    attention: str
    seq_len: int
    status: str
    reason: str = ""
    latency_ms: float | None
    tokens_per_sec: float | None
    rss_mb: float | None

    @model_validator(mode="after")
    def _measured(self) -> Self:
        if self.status == "ok" and (self.latency_ms is None or self.rss_mb is None):
            raise ValueError("a status of ok must have latency_ms and rss_mb")
        return self


class FittedExponent(JsonObject):
    """A fitted exponent with its interval and verdict."""

    exponent: Unbounded
    interval: Interval
    verdict: str
    identified: bool


class FittedScaling(JsonObject):
    """The exponents of one attention; null below three lengths."""

    time: FittedExponent | None
    memory: FittedExponent | None


class ArenaSummary(JsonObject):
    """Contents of benchmark_summary.json."""

    costs: list[ArenaCost]
    scaling: dict[str, FittedScaling]

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for cost in self.costs:
            if cost.attention not in self.scaling:
                raise ValueError(f"scaling must have the key {cost.attention!r}, as costs has it")
        return self


class MachineNames(JsonObject):
    """The hardware names in run.json."""

    gpu: str | None = None
    cpu: str | None = None


class ArenaRun(JsonObject):
    """Contents of run.json in the long arena."""

    run: str | None = None
    started: str | None = None
    config: dict[str, Any] = Field(default_factory=dict)
    machine: MachineNames = MachineNames()


class PipelineResults(JsonObject):
    """Contents of final_results/pipeline_results.json: the hash of each artifact, keyed by its path below the root."""

    artifacts: dict[str, str] = Field(default_factory=dict)


class PhaseMarker(JsonObject):
    """The OK marker of a phase: hashes of its inputs and of its results."""

    of: str
    made: dict[str, str]
    seconds: float


def parse(content: bytes, kind: type[Schema]) -> Schema:
    """Parse a file's content. Raises ValueError for the first mistake, with its key, value, and the allowed values."""
    try:
        return kind.model_validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        if first["type"] == "json_invalid":
            raise ValueError(f"it is not valid JSON: {first['ctx']['error']}") from error  # type: ignore[typeddict-item]
        key = f"{dotted(first['loc'])}: " if first["loc"] else ""
        together = first["type"] == "value_error" and isinstance(first["input"], dict)  # keys that conflict
        reason = first["msg"].removeprefix("Value error, ") if together else reason_of(first)
        raise ValueError(f"{key}{reason}") from error
