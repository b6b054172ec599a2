"""What the commands of this package write and read again: the shape of each file, so that damage is found and named.

Readers ask for what they use; further keys are kept as they are.
"""

from __future__ import annotations

from typing import Annotated, Any, Self, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from harness.config_errors import reason_of
from harness.config_source import dotted
from lsh_v2.configuration import ModelConfig

Above = Annotated[float, Field(gt=0)]
SCALER = frozenset({"scale", "growth_factor", "backoff_factor", "growth_interval", "_growth_tracker"})  # torch's


class Written(BaseModel):
    """A JSON object of a file. Types are as they were written, and numbers are finite."""

    model_config = ConfigDict(frozen=True, extra="allow", strict=True, allow_inf_nan=False)


T = TypeVar("T")
Kind = TypeVar("Kind", bound=Written)
Fitted = Annotated[float, Field(allow_inf_nan=True)]  # a fit may have no end on one side


def _pair(value: list[float]) -> list[float]:
    if len(value) != 2:
        raise ValueError("it must be two numbers")
    return value


def _some(value: list[T]) -> list[T]:
    if not value:
        raise ValueError("it must not be empty")
    return value


Interval = Annotated[list[Fitted], AfterValidator(_pair)]
Losses = Annotated[list[float], AfterValidator(_some)]


class Step(Written):
    """One step of a training, with further figures."""

    __pydantic_extra__: dict[str, float]  # type: ignore[reportIncompatibleVariableOverride]

    step: int = Field(ge=1)
    epoch: int = Field(ge=0)
    loss: float


class Grade(Written):
    """How the answers of one kind were graded."""

    score: float
    standard_error: float
    chance: float
    examples: Above


class Answers(Grade):
    """The same, with the share of answers that equal the reference."""

    exact: float


class Begun(Written):
    """What tells one run from another."""

    config: dict[str, Any]
    identity: dict[str, str]


class Fall(Written):
    """What the success flags are judged by, of a training's metrics."""

    finished: bool
    loss_train: Losses
    loss_drop_interval: Interval | None = None
    accuracy: dict[str, Grade]


class Metrics(Fall, Begun):
    """training_metrics.json."""

    accuracy: dict[str, Answers]  # type: ignore[assignment]
    attention: str
    parameters: int
    loss_eval: Losses
    seconds: float
    model: dict[str, Any]
    steps: Annotated[list[Step], AfterValidator(_some)]


class State(Written):
    """state.json of a checkpoint."""

    model: ModelConfig
    step: int = Field(ge=0)
    sha256: dict[str, str]


class TrainingState(State, Begun):
    """The same, of a training that can be gone on with."""

    seconds: float = Field(ge=0)
    tokens: int = Field(ge=0)
    steps: list[Step]
    loss_eval: list[float]
    scaler: dict[str, int | float] | None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len(self.steps) != self.step or any(one.step != number for number, one in enumerate(self.steps, 1)):
            raise ValueError(f"steps must be 1 to {self.step}")
        if self.scaler and self.scaler.keys() != SCALER:
            raise ValueError(f"scaler must hold {', '.join(sorted(SCALER))}")
        return self


class Origin(Written):
    """What a trained tokenizer was made of: a size, the hashes of texts and code; and the hash of what was made."""

    tokenizer_size: int
    texts: str
    code: str
    files: str


class Cost(Written):
    """A length of one attention in the long arena."""

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


class Fit(Written):
    """A fitted exponent."""

    exponent: Fitted
    interval: Interval
    verdict: str
    identified: bool


class Scaling(Written):
    """The exponents of one attention, null below three lengths."""

    time: Fit | None
    memory: Fit | None


class Summary(Written):
    """benchmark_summary.json."""

    costs: list[Cost]
    scaling: dict[str, Scaling]

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for cost in self.costs:
            if cost.attention not in self.scaling:
                raise ValueError(f"scaling must have the key {cost.attention!r}, which costs has")
        return self


class Place(Written):
    """What a run's facts say of the machine that is used here."""

    gpu: str | None = None
    cpu: str | None = None


class Facts(Written):
    """run.json of the long arena."""

    run: str | None = None
    started: str | None = None
    config: dict[str, Any] = Field(default_factory=dict)
    machine: Place = Place()


class Results(Written):
    """final_results/pipeline_results.json: the hash of each artifact, by its path below the root."""

    artifacts: dict[str, str] = Field(default_factory=dict)


class Marker(Written):
    """The OK marker of a phase: hashes of what it was made of, and of what it made."""

    of: str
    made: dict[str, str]
    seconds: float


def parse(content: bytes, kind: type[Kind]) -> Kind:
    """The object in a file's content. Raises ValueError with the first mistake: key, value and what is allowed."""
    try:
        return kind.model_validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        if first["type"] == "json_invalid":
            raise ValueError(f"it is no JSON: {first['ctx']['error']}") from error  # type: ignore[typeddict-item]
        key = f"{dotted(first['loc'])}: " if first["loc"] else ""
        together = first["type"] == "value_error" and isinstance(first["input"], dict)  # keys that do not agree
        reason = first["msg"].removeprefix("Value error, ") if together else reason_of(first)
        raise ValueError(f"{key}{reason}") from error
