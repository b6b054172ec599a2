"""Nothing is timed by the pytest-benchmark cases whose answer the gate refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest

from benchmarks.gated import WrongAnswerError, gated, require_right
from tests.harness.conftest import grad_mode

__all__ = ["grad_mode"]
pytestmark = pytest.mark.usefixtures("grad_mode")

BROKEN = "tests.attentions.broken"


@pytest.mark.parametrize(
    ("broken", "mode", "words"),
    [
        ("Offset", "forward", "differs from its own definition by"),
        ("Offset", "train", "differs from its own definition by"),
        ("Upcast", "forward", "torch.float64 instead of"),
        ("Clipped", "forward", "differs from its own definition by"),
        ("Forgets", "decode", "differs from its own definition by"),
    ],
)
def test_a_wrong_backend_is_refused_before_it_is_timed(
    tmp_path: Path, broken: str, mode: Literal["forward", "train", "decode"], words: str
) -> None:
    with pytest.raises(WrongAnswerError, match=words):
        gated(tmp_path, f"{BROKEN}:{broken}", 512, mode)


@pytest.mark.parametrize("mode", ["forward", "train", "decode"])
def test_a_right_backend_passes_and_goes_on_passing(
    tmp_path: Path, mode: Literal["forward", "train", "decode"]
) -> None:
    trial = gated(tmp_path, f"{BROKEN}:Exact", 512, mode)
    require_right(trial, trial.call(0))


def test_an_answer_that_goes_wrong_later_is_refused(tmp_path: Path) -> None:
    trial = gated(tmp_path, f"{BROKEN}:Exact", 128, "forward")
    with pytest.raises(WrongAnswerError, match="not finite"):
        require_right(trial, trial.call(0) * float("nan"))
