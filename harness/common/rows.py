"""Define `Case` (what is measured) and `Row` (one measurement); all reports are pure functions of rows."""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

SCHEMA = 1

Status = Literal["ok", "unsupported", "skipped", "oom", "timeout", "crash", "wrong"]
Mode = Literal["forward", "train", "decode"]


class Case(BaseModel):
    """What is measured: the identity of a row, apart from its round.

    `backend` is a name in `attentions.BACKENDS` or `package.module:Class`. `label` names the series in reports and is
    unique per backend and settings. `settings` are passed to the backend's constructor. `subject` is "attention",
    "accuracy" or `package.module:Class`. `n` is the number of keys, in tokens; in decode mode one token is produced
    after n.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    subject: str
    backend: str
    label: str
    settings: dict[str, Any]
    control: bool = False
    level: Literal["kernel", "layer"]
    mode: Mode
    inputs: str
    n: int
    batch: int
    heads: int
    kv_heads: int
    head_dim: int
    value_dim: int
    dtype: Literal["float64", "float32", "bfloat16", "float16"]
    device: str
    threads: int
    causal: bool
    seed: int

    def digest(self, *parts: str) -> str:
        """Return a short, stable hash of this identity and of `parts`, anything else that decides what is measured."""
        text = json.dumps([self.model_dump(mode="json"), *parts], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


class Measurement(BaseModel):
    """What the process of a case finds out in one round: the part of a row that only it knows.

    Bytes, seconds and counts are raw values; None means not measured.

    - `kernel` is the implementation that ran.
    - `measured_s` is the time spent in the time and memory passes; `others_share` is the share of the cores' time in
      those passes that went to other processes.
    - `samples_s` holds all timed samples, `time_s` their median.
    - `peak_bytes` is the resident high-water mark of one call beyond its inputs, output included; `allocator_bytes` is
      the same from torch's allocator trace.
    - `comparisons_bound` is the bound given by `cost()`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    status: Status
    reason: str = ""
    kernel: str = ""
    measured_s: float | None = None
    others_share: float | None = None
    samples_s: list[float] | None = None
    time_s: float | None = None
    tokens_per_s: float | None = None
    prepare_s: float | None = None
    peak_bytes: float | None = None
    allocator_bytes: float | None = None
    output_bytes: float | None = None
    state_bytes: float | None = None
    flops: float | None = None
    comparisons: float | None = None
    comparisons_bound: float | None = None
    flops_per_s: float | None = None
    roofline_share: float | None = None
    metrics: dict[str, float] = Field(default_factory=dict)


class Row(Measurement, Case):
    """The outcome of a case in one round.

    - `key` identifies the case, environment and source, so that a resumed run knows which rows it already has.
    - `wall_s` is the total time of the case, including its process.
    """

    n: Annotated[int, Field(ge=1, le=2**53)]
    schema_version: int = Field(SCHEMA, alias="schema")
    run: str
    key: str
    round: int
    wall_s: float | None = None

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    @property
    def case(self) -> Case:
        """The identity without the outcome."""
        return Case(**{name: getattr(self, name) for name in Case.model_fields})
