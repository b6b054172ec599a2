"""Put what a benchmark times through the gate of the harness first."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from harness.common.rows import Case
from harness.subjects.attention import AttentionSubject
from harness.subjects.references import CALIBRATION, Store

if TYPE_CHECKING:
    from harness.subjects.base import Trial

HEADS, DIM = 4, 64


class WrongAnswerError(AssertionError):
    """The answer that would be timed is wrong; the message says how."""


def gated(folder: Path, backend: str, n: int, mode: Literal["forward", "train", "decode"], **settings: Any) -> Trial:
    """Return a trial whose answers on both sets of inputs have passed the gate; `call(0)` is what to time.

    The gate wants every number finite, agreement with the method's own definition in float64 at sampled rows and, of a
    strictly causal method, a past that does not depend on the future. `folder` holds the inputs. Sets whether
    gradients are recorded in this process. Raises WrongAnswerError if an answer is wrong.
    """
    case = Case(
        subject="attention", backend=backend, label=backend, settings=settings, level="kernel", mode=mode,
        inputs="gaussian", n=n, batch=1, heads=HEADS, kv_heads=HEADS, head_dim=DIM, value_dim=DIM, dtype="float32",
        device="cpu", threads=torch.get_num_threads(), causal=True, seed=0,
    )  # fmt: skip
    store = Store(folder)
    store.make(case, store.missing(case, (0, 1, CALIBRATION)))
    trial = AttentionSubject().setup(case, store, case.digest())
    trial.warm()
    for variant in (0, 1):
        require_right(trial, trial.call(variant), variant)
    trial.rewind()
    return trial


def require_right(trial: Trial, answer: Any, variant: int = 0) -> None:
    """Raise WrongAnswerError unless the trial's latest answer is right."""
    if wrong := trial.check(variant, answer).wrong:
        raise WrongAnswerError(wrong)
