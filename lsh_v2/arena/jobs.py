"""The jobs of the long arena: each runs the function that the subject of its case names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from harness.common.import_path import import_path
from harness.common.job import Job
from harness.common.rows import Case, Measurement
from lsh_v2.common.configuration import ModelConfig
from lsh_v2.training.configuration import TrainingConfig

MODULE = "lsh_v2.arena.case"
FORWARD, LEARNING = f"{MODULE}:forward", f"{MODULE}:learning"


@dataclass(frozen=True)
class ForwardPass(Job[Measurement]):
    """The cost of a forward pass, of the subject `FORWARD`.

    Takes `samples` samples, each on a different stretch of text, or fewer if `time_s` is too short; at least one.
    `weights` is the hash of the checkpoint's weights, so that other weights produce other rows.
    """

    case: Case
    model: ModelConfig
    checkpoint: str | None
    weights: str
    samples: int
    time_s: float
    memory_gb: float

    def run(self) -> Measurement:
        return _run(self)


@dataclass(frozen=True)
class Learning(Job[Measurement]):
    """The accuracy that a model reaches, of the subject `LEARNING`."""

    case: Case
    training: TrainingConfig

    def run(self) -> Measurement:
        return _run(self)


def _run(job: ForwardPass | Learning) -> Measurement:
    function: Any = import_path(job.case.subject)
    return function(job)
