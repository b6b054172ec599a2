"""One case in its child, from set-up to the outcome of a row."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from harness.common.rows import Measurement, Row
from harness.measure.cpu_load import cores
from harness.measure.gate import Ceilings
from harness.runner.case import MeasureCase, MeasuredCase
from harness.runner.executor import Executor, Limits, Outcome
from harness.subjects.references import MakeReferences
from tests.harness.cases import a_case, a_row
from tests.harness.measure.test_cpu_load import SPIN


@pytest.fixture
def measure(executor: Executor, tmp_path: Path) -> Callable[..., Outcome[MeasuredCase]]:
    """Measure a backend in a child, its inputs made first."""

    def run(backend: str, number: int = 0, **changes: Any) -> Outcome[MeasuredCase]:
        ceilings, room = changes.pop("ceilings", 0.0), changes.pop("room", 2 * 10**9)
        expected_s = changes.pop("expected_s", None)
        case = a_case(backend=backend if ":" not in backend else f"tests.harness.backends{backend}", **changes)
        made = executor.run(MakeReferences(tmp_path, case, [0, 1, 2]), Limits(60.0))
        assert made.status == "ok", made.reason
        job = MeasureCase(case, case.digest(), number, tmp_path, room, expected_s, Ceilings(ceilings, ceilings))
        return executor.run(job, Limits(60.0, memory_bytes=4 * 10**9))

    return run


def found(outcome: Outcome[MeasuredCase]) -> Measurement:
    assert outcome.answer is not None, outcome.reason
    return outcome.answer.measurement


def test_a_first_round_fills_every_field_of_a_row(measure: Any) -> None:
    outcome = measure(":Right", ceilings=1e12)
    answer = found(outcome).model_dump()
    row = Row(**a_row().model_dump(exclude=set(answer)), **answer)
    unknown = {"prepare_s", "wall_s"}  # it learns nothing; and who started it knows how long it took
    assert {name for name in Row.model_fields if getattr(row, name) is None} == unknown
    assert row.status == "ok"
    assert sum(row.samples_s or []) < (row.measured_s or 0) < outcome.wall_s
    assert row.tokens_per_s == pytest.approx(256 / (row.time_s or 0))
    assert row.flops_per_s == pytest.approx((row.flops or 0) / (row.time_s or 0))
    assert row.roofline_share == pytest.approx((row.flops or 0) / 1e12 / (row.time_s or 0))
    assert set(row.metrics) == {"error", "error_v", "naive_error", "leak"}


def test_what_others_take_meanwhile_is_told(measure: Any) -> None:
    with subprocess.Popen([sys.executable, "-c", SPIN], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()  # it has begun
        share = found(measure(":Right")).others_share
        other.kill()
    assert (share or 0) > 0.2 / len(cores())


def test_a_later_round_takes_time_alone(measure: Any) -> None:
    measure(":Right")
    answer = found(measure(":Right", number=1))
    assert answer.status == "ok"
    assert answer.samples_s
    assert answer.metrics == {}
    assert answer.peak_bytes is answer.allocator_bytes is answer.comparisons is None


def test_both_memory_channels_see_the_two_score_matrices_of_vanilla(measure: Any) -> None:
    n, heads = 2048, 2
    answer = found(measure("vanilla", n=n, heads=heads, kv_heads=heads, causal=False))
    known = 2 * heads * n * n * 4
    assert answer.peak_bytes == pytest.approx(known, rel=0.1)
    assert answer.allocator_bytes == pytest.approx(known, rel=0.1)


@pytest.mark.parametrize(
    ("backend", "message"),
    [
        (":AddsOneHundredth", "differs from its own definition"),
        (":NotFinite", "not finite"),
        (":Leaking", "when only later tokens change"),
        (":TurnsWrong", "differs from its own checked output"),
        (":TooFast", "faster than the hardware"),
    ],
)
def test_a_wrong_answer_has_a_reason_and_no_time(measure: Any, backend: str, message: str) -> None:
    answer = found(measure(backend, ceilings=1e9))
    assert answer.status == "wrong"
    assert message in answer.reason
    given = set(answer.model_dump(exclude_none=True))
    assert not given & {"time_s", "samples_s", "tokens_per_s", "flops_per_s", "roofline_share"}


@pytest.mark.parametrize(
    ("backend", "settings", "status"),
    [
        (":Right", {}, "ok"),
        (":Calibrated", {}, "unsupported"),
        ("bit_sampling", {}, "ok"),
        ("bit_sampling", {"balanced": True}, "unsupported"),
        ("simhash", {}, "ok"),
        ("simhash", {"balanced": True}, "unsupported"),
        ("vq", {}, "unsupported"),
    ],
)
def test_only_who_learns_needs_more_than_what_is_attended_to(
    measure: Any, tmp_path: Path, backend: str, settings: dict[str, Any], status: str
) -> None:
    shapes = {"q": (1, 2, 256, 8), "k": (1, 1, 256, 8), "v": (1, 1, 256, 16)}
    save_file({name: torch.randn(shape) for name, shape in shapes.items()}, tmp_path / "own.safetensors")
    answer = found(measure(backend, settings=settings, inputs=str(tmp_path / "own.safetensors")))
    assert answer.status == status, answer.reason
    if status == "unsupported":
        assert answer.reason.startswith("it needs a calibration sample, which is not available: ")
        assert "use a longer file or one with more sequences" in answer.reason


@pytest.mark.parametrize("backend", [":Right", ":Learns"])
def test_a_disk_too_full_for_a_fingerprint_or_for_what_was_learnt_is_no_fault_of_the_method(
    executor: Executor, measure: Any, tmp_path: Path, backend: str
) -> None:
    case = a_case(backend=f"tests.harness.backends{backend}")
    assert found(measure(backend)).status == "ok"
    for file in tmp_path.glob("*-*.safetensors"):
        if not file.name.startswith("inputs"):
            file.unlink()
    job = MeasureCase(case, case.digest(), 0, tmp_path, None, None, Ceilings(0.0, 0.0))
    room = Limits(60.0, file_bytes=64)
    first = executor.run(job, room)
    assert found(first).status == "ok"
    assert first.answer is not None
    assert "File too large" in first.answer.unwritable
    later = found(executor.run(replace(job, round=1), room))
    assert later.status == "ok"
    assert later.samples_s


def test_ceilings_that_were_measured_too_low_are_measured_again(measure: Any) -> None:
    assert found(measure(":Right", ceilings=1.0)).status == "ok"


@pytest.mark.parametrize("mode", ["train", "decode"])
def test_other_modes_are_measured_too(measure: Any, mode: str) -> None:
    answer = found(measure(":Streaming", mode=mode))
    assert (answer.status, answer.reason) == ("ok", "")
    assert (answer.time_s or 0) > 0


def test_what_cannot_run_is_unsupported(measure: Any) -> None:
    assert found(measure(":Cannot")) == Measurement(status="unsupported", reason="it only runs on Sundays")


def test_accuracy_has_metrics_and_no_time(measure: Any) -> None:
    answer = found(measure(":Inexact", subject="accuracy"))
    assert answer.status == "ok"
    assert answer.metrics["error"] == pytest.approx(0.5, abs=1e-5)
    assert answer.time_s is None
    assert answer.peak_bytes is None


def test_memory_beyond_the_limit_is_oom(measure: Any) -> None:
    assert measure(":Hungry").status == "oom"


def test_the_checks_have_room_that_the_method_has_not(measure: Any) -> None:
    """A limit that the method keeps must not fail the harness's own float64 rows."""
    assert measure(":HungryDefinition", room=5 * 10**8).status == "ok"
    assert measure(":Right", n=8192, room=5 * 10**8).status == "oom"


def test_a_long_call_takes_both_memory_channels_at_once(measure: Any) -> None:
    answer = found(measure(":Counting", expected_s=2.0))
    assert (answer.status, answer.kernel) == ("ok", "2 calls")
    assert (answer.peak_bytes or 0) > 0
    assert (answer.allocator_bytes or 0) > 0
