"""The gate of the attention subject: right answers pass with their metrics, each wrong one is told why."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor

from attentions.bit_sampling import BitSampling
from harness.measure import gate
from harness.subjects.attention import AccuracySubject, AttentionSubject
from harness.subjects.base import CheckResult, Trial, Unsupported
from harness.subjects.references import CALIBRATION, Store
from tests.harness.backends import Calibrated, Learns, Right
from tests.harness.cases import a_case

if TYPE_CHECKING:
    from harness.common.rows import Case

pytestmark = pytest.mark.usefixtures("grad_mode")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store")


def case_of(backend: str, **changes: Any) -> Case:
    return a_case(backend=f"tests.harness.backends:{backend}", label=backend, **changes)


def trial_of(folder: Path, case: Case) -> Trial:
    store = Store(folder)
    store.make(case, store.missing(case, (0, 1, CALIBRATION)))
    trial = AttentionSubject().setup(case, store, case.digest())
    trial.warm()
    return trial


def both_sets(trial: Trial) -> CheckResult:
    """What the gate of a first round finds, as `harness.runner.case` uses it."""
    first = trial.check(0, trial.call(0))
    if first.wrong:
        return first
    second = trial.check(1, trial.call(1))
    return CheckResult(first.metrics | second.metrics, second.wrong)


@pytest.mark.parametrize("mode", ["forward", "train", "decode"])
@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
def test_a_right_backend_passes_in_every_mode_and_dtype(folder: Path, mode: str, dtype: str) -> None:
    found = both_sets(trial_of(folder, case_of("Right", mode=mode, dtype=dtype)))
    assert found.wrong == ""
    tolerance = Right.tolerance[getattr(torch, dtype)]
    assert found.metrics["error"] <= tolerance
    assert found.metrics["naive_error"] <= tolerance
    assert ("leak" in found.metrics) == (mode != "decode")
    assert ("gradient_error" in found.metrics) == (mode == "train")


def test_an_approximation_that_meets_its_own_definition_passes_with_its_error(folder: Path) -> None:
    found = both_sets(trial_of(folder, case_of("Inexact")))
    assert found.wrong == ""
    assert found.metrics["error"] == pytest.approx(0.5, abs=1e-5)
    assert 0 < found.metrics["error_v"] < 0.5
    assert found.metrics["naive_error"] < 1e-6


@pytest.mark.parametrize(
    ("backend", "changes", "message"),
    [
        ("AddsOneHundredth", {}, "differs from its own definition by"),
        ("AddsOneHundredth", {"level": "layer"}, "differs from its own definition by"),
        ("AddsOneHundredth", {"causal": False}, "differs from its own definition by"),
        ("NotFinite", {}, "1 of 8192 numbers are not finite"),
        ("WrongType", {}, "torch.float64 instead of"),
        ("SecondSetOnly", {}, "differs from its own definition by"),
        ("Leaking", {}, "(relative) when only later tokens change"),
        ("Leaking", {"mode": "train"}, "(relative) when only later tokens change"),
        ("WrongGradient", {"mode": "train"}, "differs from the gradient of its definition by 0.5"),
        ("StreamingWrong", {"mode": "decode"}, "differs from its own definition by"),
    ],
)
def test_a_wrong_backend_is_told_why(folder: Path, backend: str, changes: dict[str, Any], message: str) -> None:
    assert message in both_sets(trial_of(folder, case_of(backend, **changes))).wrong


def test_a_leak_through_selection_is_recorded_and_not_wrong(folder: Path) -> None:
    found = both_sets(trial_of(folder, case_of("LeakingBySelection")))
    assert found.wrong == ""
    assert found.metrics["leak"] > 0.01


def test_without_causality_there_is_no_leak(folder: Path) -> None:
    found = both_sets(trial_of(folder, case_of("LeakingBySelection", causal=False)))
    assert (found.wrong, "leak" in found.metrics) == ("", False)


def test_later_answers_are_compared_with_the_first_checked_ones(folder: Path) -> None:
    trial = trial_of(folder, case_of("Right"))
    assert both_sets(trial).wrong == ""
    answer = trial.call(1)
    assert trial.check(1, answer).wrong == ""
    assert "its own checked output" in trial.check(1, answer * 1.001).wrong


def test_later_gradients_are_compared_too(folder: Path) -> None:
    trial = trial_of(folder, case_of("Right", mode="train"))
    assert both_sets(trial).wrong == ""
    out, gradient = trial.call(0)
    assert trial.check(0, (out, gradient)).wrong == ""
    assert "its own checked output" in trial.check(0, (out, gradient * 1.1)).wrong


def test_later_rounds_compare_with_what_was_kept(folder: Path) -> None:
    case = case_of("Right", seed=5)
    trial = trial_of(folder, case)
    both_sets(trial)
    trial.keep()
    later = trial_of(folder, case)
    assert later.check(0, later.call(0)) == CheckResult()
    other = AttentionSubject().setup(case_of("AddsOneHundredth", seed=5), Store(folder), case.digest())
    assert "its own checked output" in other.check(0, other.call(0)).wrong


def test_a_stream_is_right_at_every_length_that_timing_gives_it(folder: Path) -> None:
    trial = trial_of(folder, case_of("Streaming", mode="decode", n=40))
    assert both_sets(trial).wrong == ""
    for step in range(30):
        allowed = trial.rewind()
        assert 1 <= allowed <= 5
        found = trial.check(step % 2, trial.call(step % 2))
        assert found.wrong == ""
        assert found.metrics.get("error", 0.0) <= Right.tolerance[torch.float32]
    state = trial.facts(thorough=True).state_bytes
    assert state is not None
    assert 41 <= state / (8 + 16) / 4 <= 46


def test_filling_a_stream_in_pieces_changes_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.subjects.modes.PREFILL_SCORES", 700)
    assert both_sets(trial_of(folder, case_of("Streaming", mode="decode", n=100))).wrong == ""


def test_what_cannot_run_says_so(folder: Path) -> None:
    with pytest.raises(Unsupported, match="it only runs on Sundays"):
        trial_of(folder, case_of("Cannot"))
    with pytest.raises(Unsupported, match="a layer has no decoding stream"):
        trial_of(folder, case_of("Right", level="layer", mode="decode"))


def test_only_backends_that_learn_are_shown_a_sample_and_timed_at_it(folder: Path) -> None:
    assert Calibrated(2, 8).learns
    assert not Right(2, 8).learns
    trial = trial_of(folder, case_of("Calibrated"))
    assert both_sets(trial).wrong == ""
    assert trial.facts(thorough=False).prepare_s is not None
    layer = trial_of(folder, case_of("Calibrated", level="layer"))
    assert both_sets(layer).wrong == ""


def test_what_was_learnt_once_is_loaded_afterwards(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Learns, "lessons", 0)
    case = case_of("Learns")
    trials = [trial_of(folder, one) for one in (case, case.model_copy(update={"label": "again"}))]
    assert [both_sets(trial).wrong for trial in trials] == ["", ""]
    assert Learns.lessons == 1
    first, again = (trial.facts(thorough=False).prepare_s for trial in trials)
    assert first == again
    trial_of(folder, case_of("Learns", seed=1))
    assert Learns.lessons == 2


def test_what_is_not_in_the_state_is_learnt_each_time(folder: Path) -> None:
    for _ in range(2):
        assert both_sets(trial_of(folder, case_of("Calibrated"))).wrong == ""


def test_a_support_method_tells_the_mass_that_it_keeps(folder: Path) -> None:
    settings = {"bits": 2, "window": 16, "tables": 1}
    case = a_case(backend="bit_sampling", label="bits", settings=settings, heads=2, kv_heads=2, value_dim=8)
    found = both_sets(trial_of(folder, case))
    assert found.wrong == ""
    assert 0.0 < found.metrics["kept_mass"] < 1.0
    assert found.metrics["error"] > 0.0
    assert BitSampling.approximates == "softmax"


def test_facts_count_what_a_call_handles(folder: Path) -> None:
    trial = trial_of(folder, case_of("Right", n=300, batch=2))
    trial.check(0, trial.call(0))
    facts = trial.facts(thorough=True)
    pairs = 2 * 2 * 300 * 301 / 2
    assert trial.tokens == 600
    assert facts.comparisons == facts.comparisons_bound == pairs
    assert facts.flops == 2 * pairs * (8 + 16)
    assert facts.output_bytes == 2 * 2 * 300 * 16 * 4
    assert facts.state_bytes == 2 * 300 * (8 + 16) * 4
    assert trial.facts(thorough=False).comparisons is None


def test_training_counts_the_backward_pass_twice(folder: Path) -> None:
    forward, train = (trial_of(folder, case_of("Right", mode=mode)) for mode in ("forward", "train"))
    assert train.facts(thorough=False).flops == 3 * (forward.facts(thorough=False).flops or 0)


def test_accuracy_is_the_same_without_a_clock(folder: Path) -> None:
    case = case_of("Inexact")
    trial = AccuracySubject().setup(case, Store(folder), case.digest())
    assert not trial.timed
    assert both_sets(trial).metrics["error"] == pytest.approx(0.5, abs=1e-5)


ALONE = {"bits": 0, "window": 1, "local": 1}  # each query attends to its own key only: softmax of one score is constant


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
@pytest.mark.parametrize(
    ("backend", "settings"), [("bit_sampling", ALONE), ("lsh_v2", {}), ("hyper", {}), ("flash", {})]
)
def test_gradient_whose_true_value_is_zero_is_no_error(
    folder: Path, backend: str, settings: dict[str, Any], dtype: str
) -> None:
    """But for bit sampling, of one position: it attends to itself alone."""
    n = 128 if backend == "bit_sampling" else 1
    case = a_case(backend=backend, label=backend, settings=settings, mode="train", dtype=dtype, n=n)
    found = both_sets(trial_of(folder, case))
    assert found.wrong == ""
    assert found.metrics["gradient_error"] <= gate.GRADIENT_SLACK * Right.tolerance[getattr(torch, dtype)]


def test_gradient_that_should_be_zero_and_is_not_is_wrong(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = a_case(backend="bit_sampling", label="leaky", settings=ALONE, mode="train", dtype="float32", n=128)
    trial = trial_of(folder, case)

    def leaky(_: BitSampling, q: Tensor, k: Tensor, v: Tensor, *, first: Tensor | None = None) -> Tensor:
        return v.repeat_interleave(q.shape[1] // v.shape[1], dim=1) + 1e-3 * (q - q.detach()).sum() + 0 * k.sum()

    monkeypatch.setattr(BitSampling, "forward", leaky)
    assert "differs from the gradient of its definition" in both_sets(trial).wrong


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("backend", ["flash", "bit_sampling", "mamba", "reformer"])
def test_gradient_error_away_from_zero_is_relative_to_the_gradient(
    folder: Path, backend: str, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = a_case(backend=backend, label=backend, mode="train", dtype=dtype, n=512)
    found = both_sets(trial_of(folder, case)).metrics["gradient_error"]
    monkeypatch.setattr(gate, "least_gradient", lambda *_: 0.0)
    assert both_sets(trial_of(folder, case)).metrics["gradient_error"] == found
