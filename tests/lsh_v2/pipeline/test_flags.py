from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lsh_v2.pipeline.flags import Flag, flags_of, shown
from lsh_v2.pipeline.phases import Layout


def cost(n: int, status: str = "ok", **other: Any) -> dict[str, Any]:
    figures = {"latency_ms": 500.0, "tokens_per_sec": 12_000.0, "rss_mb": 900.0} if status == "ok" else {}
    empty = {"latency_ms": None, "tokens_per_sec": None, "rss_mb": None, "reason": "no answer within 60 s"}
    return {"attention": "lsh_v2", "seq_len": n, "status": status, **empty, **figures, **other}


def fit(low: float, high: float, identified: bool = True) -> dict[str, Any]:
    return {"exponent": (low + high) / 2, "interval": [low, high], "verdict": "n", "identified": identified}


def judged(tmp_path: Path, summary: dict[str, Any] | None, metrics: dict[str, Any] | None, gpu: str = "") -> list[Flag]:
    layout = Layout(tmp_path, quick=True)
    for folder, name, data in (
        (layout.benchmark, "benchmark_summary.json", summary),
        (layout.benchmark, "run.json", {"machine": {"gpu": gpu, "cpu": "abacus"}}),
        (layout.training, "training_metrics.json", metrics),
    ):
        folder.mkdir(parents=True, exist_ok=True)
        if data is not None:
            (folder / name).write_text(json.dumps(data))
    return flags_of(layout)


def benchmark(
    tmp_path: Path, costs: list[dict[str, Any]], time: object = None, memory: object = None, gpu: str = ""
) -> list[Flag]:
    labels = dict.fromkeys(one["attention"] for one in costs)
    scaling = {label: {"time": time, "memory": memory} for label in labels}
    return judged(tmp_path, {"costs": costs, "scaling": scaling}, None, gpu)[:4]


def training(tmp_path: Path, **metrics: Any) -> list[Flag]:
    usual = {"finished": True, "loss_train": [2.0, 1.0], "loss_drop_interval": [0.5, 1.5], "accuracy": {}}
    return judged(tmp_path, None, usual | metrics)[4:]


def test_nothing_measured_is_nothing_judged(tmp_path: Path) -> None:
    flags = judged(tmp_path, None, None)
    assert len(flags) == 7
    assert {flag.holds for flag in flags} == {None}


@pytest.mark.parametrize(
    ("costs", "holds"),
    [
        ([cost(512), cost(65_536)], True),
        ([cost(512), cost(131_072)], True),
        ([cost(512), cost(65_536, "oom")], False),
        ([cost(512), cost(65_536, "timeout")], False),
        ([cost(512), cost(16_384)], None),
    ],
)
def test_long_sequences_are_feasible_if_one_was_measured(
    tmp_path: Path, costs: list[dict[str, Any]], holds: bool | None
) -> None:
    assert benchmark(tmp_path, costs)[0].holds is holds


@pytest.mark.parametrize(
    ("fitted", "holds"),
    [
        (fit(0.9, 1.1), True),
        (fit(1.1, 1.3), None),
        (fit(1.3, 1.5), False),
        (fit(0.9, 1.1, identified=False), None),
        (None, None),
    ],
)
def test_the_time_exponent_is_judged_by_its_interval(tmp_path: Path, fitted: object, holds: bool | None) -> None:
    assert benchmark(tmp_path, [cost(512)], time=fitted)[1].holds is holds


@pytest.mark.parametrize(
    ("fitted", "holds"),
    [(fit(0.95, 1.05), True), (fit(1.9, 2.0), False), (fit(0.2, 0.4), False), (fit(0.8, 1.1), None)],
)
def test_the_memory_exponent_must_be_about_one(tmp_path: Path, fitted: object, holds: bool | None) -> None:
    assert benchmark(tmp_path, [cost(512)], memory=fitted)[2].holds is holds


@pytest.mark.parametrize(("rate", "gpu", "holds"), [(12e3, "A100", True), (9e3, "A100", False), (12e3, "", None)])
def test_throughput_is_judged_on_a_gpu_and_reported_elsewhere(
    tmp_path: Path, rate: float, gpu: str, holds: bool | None
) -> None:
    flag = benchmark(tmp_path, [cost(512, tokens_per_sec=rate)], gpu=gpu)[3]
    assert flag.holds is holds
    assert f"{rate:,.0f} at 512 tokens on {gpu or 'abacus'}" in flag.figure


def test_the_trained_model_is_judged_before_others(tmp_path: Path) -> None:
    costs = [cost(65_536, "oom"), {**cost(65_536), "attention": "checkpoint"}]
    assert benchmark(tmp_path, costs)[0] == Flag(
        "65,536 tokens feasible", True, "checkpoint: 65,536 tokens in 0.5 s, 900 MB resident"
    )


@pytest.mark.parametrize(
    ("interval", "holds"), [([0.5, 1.5], True), ([-0.1, 0.2], None), ([-2, -1], False), (None, None)]
)
def test_the_loss_has_fallen_if_its_interval_says_so(
    tmp_path: Path, interval: list[float] | None, holds: bool | None
) -> None:
    assert training(tmp_path, loss_drop_interval=interval)[0].holds is holds


@pytest.mark.parametrize(("odd", "sets", "holds"), [(0.5, 0.5, [True, True]), (0.47, 0.49, [False, False])])
def test_accuracies_are_held_against_chance_and_a_half(
    tmp_path: Path, odd: float, sets: float, holds: list[bool]
) -> None:
    rest = {"standard_error": 0.01, "examples": 100.0}
    accuracy = {
        "odd_one_out": {"score": odd, "chance": 0.16, **rest},
        "set_data": {"score": sets, "chance": 0.1, **rest},
    }
    assert [flag.holds for flag in training(tmp_path, accuracy=accuracy)[1:]] == holds


def test_a_training_that_has_not_finished_is_not_judged(tmp_path: Path) -> None:
    assert {flag.holds for flag in training(tmp_path, finished=False)} == {None}


@pytest.mark.parametrize(
    ("name", "harm", "message"),
    [
        ("benchmark_summary.json", {"costs": None}, "costs: null is not allowed"),
        ("benchmark_summary.json", {"costs": [5]}, "costs.0: 5 is not allowed"),
        ("benchmark_summary.json", {"costs": [cost(512, latency_ms=None)]}, "must have latency_ms and rss_mb"),
        ("benchmark_summary.json", {"costs": [cost(512, seq_len="x")]}, "costs.0.seq_len: 'x' is not allowed"),
        ("benchmark_summary.json", {"scaling": {}}, "scaling must have the key 'lsh_v2'"),
        ("benchmark_summary.json", {"scaling": {"lsh_v2": {"time": 3, "memory": None}}}, "scaling.lsh_v2.time: 3 is"),
        (
            "benchmark_summary.json",
            {"scaling": {"lsh_v2": {"time": fit(1, 2) | {"interval": [1]}, "memory": None}}},
            "scaling.lsh_v2.time.interval: .* it must be two numbers",
        ),
        ("run.json", {"machine": [1]}, "machine: .* is not allowed"),
        ("run.json", {"machine": {"gpu": 3}}, "machine.gpu: 3 is not allowed"),
        ("training_metrics.json", {"finished": "no"}, "finished: 'no' is not allowed"),
        ("training_metrics.json", {"loss_train": []}, "loss_train: .* it must not be empty"),
        ("training_metrics.json", {"loss_drop_interval": ["a", "b"]}, "loss_drop_interval.0: 'a' is not allowed"),
        ("training_metrics.json", {"accuracy": {"odd_one_out": {"score": 1}}}, "accuracy.odd_one_out.standard_error: "),
    ],
)
def test_damage_is_named_with_its_file(tmp_path: Path, name: str, harm: dict[str, Any], message: str) -> None:
    summary = {"costs": [cost(512)], "scaling": {"lsh_v2": {"time": None, "memory": None}}}
    metrics = {"finished": True, "loss_train": [2.0], "loss_drop_interval": None, "accuracy": {}}
    assert len(judged(tmp_path, summary, metrics)) == 7
    (path,) = tmp_path.rglob(name)
    path.write_text(json.dumps(json.loads(path.read_text()) | harm))
    with pytest.raises(ValueError, match=rf"{name} cannot be read: .*{message}.*; remove it, and the same command"):
        flags_of(Layout(tmp_path, quick=True))
    path.write_text("[" * 100_000)
    with pytest.raises(ValueError, match=rf"{name} cannot be read: it is not valid JSON: recursion limit"):
        flags_of(Layout(tmp_path, quick=True))


def test_flags_are_shown_with_their_figures() -> None:
    text = shown([Flag("a claim", True, "3"), Flag("b", False, "4"), Flag("c", None, "none")])
    assert text == "  a claim  yes         3\n  b        NO          4\n  c        not judged  none"
