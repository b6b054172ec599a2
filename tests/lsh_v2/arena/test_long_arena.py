from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from attentions.flash import Flash
from harness.common.rows import Case, Measurement, Row
from harness.config.yaml_source import ConfigError
from harness.results.rows_file import read_rows
from lsh_v2 import long_arena
from lsh_v2.arena import run as long_arena_run
from lsh_v2.arena.case import forward
from lsh_v2.arena.config import ArenaConfig, load_arena_config
from lsh_v2.arena.jobs import ForwardPass, Learning
from lsh_v2.arena.run import cases_of, run
from lsh_v2.arena.summary import summarise
from lsh_v2.arena.tasks import text_classification
from lsh_v2.common.configuration import ModelConfig
from tasks.example import Example, Task
from tasks.jsonl import write_examples
from tests.lsh_v2.small import no_room

TINY = {"d_model": 32, "n_heads": 2, "n_kv_heads": 1, "n_layers": 2, "weight_tied_layers": 1, "feed_forward_dim": 32}
QUICK = Path(long_arena.__file__).with_name("long_arena_quick.yml")


class Leaky(Flash):
    """Claims strict causality and reads the future."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, *, first: Tensor | None = None) -> Tensor:
        return super().forward(q, k, v, first=first) + v.mean(2, keepdim=True)


class Broken(Flash):
    """Gives no numbers beyond the tokens of the causality check."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, *, first: Tensor | None = None) -> Tensor:
        out = super().forward(q, k, v, first=first)
        return out / 0 if q.shape[2] > 3000 else out


class Tiring(Flash):
    """Gives no numbers after a while."""

    calls: ClassVar[list[int]] = []

    def forward(self, q: Tensor, k: Tensor, v: Tensor, *, first: Tensor | None = None) -> Tensor:
        self.calls.append(1)
        out = super().forward(q, k, v, first=first)
        return out / 0 if len(self.calls) > 40 else out


class Hungry(Flash):
    """Asks for more memory than there is beyond 100 tokens."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, *, first: Tensor | None = None) -> Tensor:
        if q.shape[2] > 100:
            torch.ones(2**40)
        return super().forward(q, k, v, first=first)


class Echo(Task):
    """A task from outside the project: say the letter again."""

    def example(self, index: int) -> Example:
        letter = random.Random(index).choice("ab")
        return Example(letter, letter, {"task": self.name})


def config(tmp_path: Path, *changes: str) -> ArenaConfig:
    settings = [f"model={json.dumps(TINY)}", "sequence_lengths=[64, 128]", "num_samples_per_length=2", "device=cpu"]
    usual = [*settings, "threads=1", "attentions=[flash]", "max_memory_gb=8.0", f"out={tmp_path / 'run'}"]
    return load_arena_config(QUICK, [*usual, *changes])


@pytest.fixture
def gradients() -> Iterator[None]:
    """A case switches gradients off for its process, which here is everybody's."""
    yield
    torch.set_grad_enabled(True)


def measured(attention: str, *, n: int = 64, samples: int = 3, time_s: float = 60.0) -> Measurement:
    model = ModelConfig.model_validate({**TINY, "vocab_size": 259, "max_seq_len": n, "attention": attention})
    job = next(iter(cases_of(config(Path(), f"attentions=[{attention}]", f"sequence_lengths={n}"))))
    return forward(ForwardPass(job.case, model, None, "", samples, time_s, memory_gb=8.0))


@pytest.mark.usefixtures("gradients")
def test_a_forward_pass_has_samples_and_the_guides_figures() -> None:
    found = measured("flash")
    assert found.status == "ok"
    assert found.samples_s is not None
    assert len(found.samples_s) == 3
    assert found.tokens_per_s == 64 / sorted(found.samples_s)[1]
    assert found.metrics["rss_mb"] > 100
    assert found.metrics["leak"] < 1e-5
    # Logits of one token alone, and a few tensors of 64 tokens by 32 channels and 2 times as many.
    assert 4 * 259 < (found.allocator_bytes or 0) < 64 * 32 * 4 * 40


@pytest.mark.usefixtures("gradients")
def test_samples_end_where_the_time_would_not_suffice() -> None:
    assert len(measured("flash", samples=50, time_s=1e-6).samples_s or ()) == 1


@pytest.mark.usefixtures("gradients")
def test_a_model_that_reads_the_future_has_no_time() -> None:
    found = measured(f"{__name__}:Leaky")
    assert found.status == "wrong"
    assert "when only later tokens change" in found.reason
    assert found.time_s is None


@pytest.mark.usefixtures("gradients")
def test_a_model_whose_logits_are_no_numbers_has_no_time() -> None:
    for name, n in (("Broken", 5_000), ("Tiring", 64)):
        found = measured(f"{__name__}:{name}", n=n, samples=30)
        assert found.status == "wrong"
        assert "259 of 259 numbers are not finite" in found.reason
        assert found.time_s is None


def test_jobs_are_all_lengths_of_all_attentions_and_then_the_tasks(tmp_path: Path) -> None:
    tasks = '{echo: {task: "tests.lsh_v2.arena.test_long_arena:Echo", seq_length: 16}}'
    jobs = list(cases_of(config(tmp_path, "attentions=[flash, {name: simhash, bits: 4}]", f"tasks={tasks}")))
    cases = [(job.case.mode, job.case.n, job.case.label) for job in jobs]
    costs = [("forward", n, label) for n in (64, 128) for label in ("flash", "simhash bits=4")]
    assert cases == [*costs, ("train", 16, "flash"), ("train", 16, "simhash bits=4")]
    first, last = jobs[1].job, jobs[-1].job
    assert isinstance(first, ForwardPass)
    assert first.model.attention_settings == {"bits": 4}
    assert isinstance(last, Learning)
    assert last.training.model["attention"] == "simhash"


def test_other_weights_are_another_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = set()
    for weights in ("one", "two", "one"):
        model = ModelConfig.model_validate({**TINY, "attention": "flash"})
        monkeypatch.setattr(long_arena_run, "_trained", lambda _, weights=weights, model=model: (model, weights))
        asked = config(tmp_path, "checkpoint=somewhere", "sequence_lengths=64")
        *_, trained = cases_of(asked)
        assert trained.case.label == "checkpoint"
        keys.add(long_arena_run.key_of(trained, long_arena_run.facts_of(asked, "")))
    assert len(keys) == 2


def test_other_content_of_a_file_of_examples_is_another_row(tmp_path: Path) -> None:
    path, keys = tmp_path / "examples.jsonl", set()
    task = f'tasks={{echo: {{task: "{__name__}:Echo", seq_length: 16, training: {{train_file: "{path}"}}}}}}'
    for answer in ("a", "b", "a"):
        write_examples(path, [Example("a", answer)])
        asked = config(tmp_path, task, "sequence_lengths=64")
        *_, learnt = cases_of(asked)
        keys.add(long_arena_run.key_of(learnt, long_arena_run.facts_of(asked, "")))
    assert len(keys) == 2


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ("[" * 100_000, "it is not valid JSON: recursion limit exceeded"),
        ("[]", r"\[\] is not allowed; it must be an object"),
        ('{"run": 5}', "run: 5 is not allowed"),
        ('{"config": null}', "config: null is not allowed"),
        ('{"machine": 3}', "machine: 3 is not allowed"),
        ('{"started": ["x"]}', "started: .* is not allowed"),
    ],
)
def test_damaged_facts_are_named_before_anything_runs(
    facts: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(long_arena_run, "row_of", lambda *_: pytest.fail("a case ran"))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text(facts)
    with pytest.raises(ValueError, match=rf"run\.json cannot be read: {message}.*; remove it, and the same command"):
        run(config(tmp_path))
    assert (tmp_path / "run" / "run.json").read_text() == facts


def test_what_a_limit_ended_is_tried_again_with_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The guide: raise timeout_seconds. A training goes on at its checkpoint in any case."""
    asked: list[tuple[str, int]] = []

    def stand_in(job: Any, key: str, run: str, executor: object, stopped: str = "") -> Row:
        asked.append((job.case.mode, job.case.n))
        fine = job.limits.time_s > 50 and job.case.mode == "forward"
        outcome: dict[str, Any] = {"status": "timeout", "reason": "too late"}
        if fine or job.case.n == 64:
            outcome = {"status": "ok", "samples_s": [1.0], "time_s": 1.0}
        if stopped:
            outcome = {"status": "skipped", "reason": stopped}
        return Row(**job.case.model_dump(), run=run, key=key, round=0, **outcome)

    monkeypatch.setattr(long_arena_run, "row_of", stand_in)
    task = f'tasks={{echo: {{task: "{__name__}:Echo", seq_length: 16}}}}'
    common = [task, "sequence_lengths=[64, 128, 256]"]
    first = run(config(tmp_path, *common, "timeout_seconds=9"))
    assert [cost["status"] for cost in first["costs"]] == ["ok", "timeout", "skipped"]
    assert asked == [("forward", 64), ("forward", 128), ("forward", 256), ("train", 16)]
    asked.clear()
    assert run(config(tmp_path, *common, "timeout_seconds=9")) == first
    assert asked == [("train", 16)]
    asked.clear()
    patient = run(config(tmp_path, *common, "timeout_seconds=90"))
    assert [cost["status"] for cost in patient["costs"]] == ["ok", "ok", "ok"]
    assert asked == [("forward", 128), ("forward", 256), ("train", 16)]


def test_a_model_that_was_trained_meanwhile_joins_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when a pipeline ran with --no-training first."""
    asked: list[str] = []

    def stand_in(job: Any, key: str, run: str, *_: object) -> Row:
        asked.append(f"{job.case.label} {job.job.weights}".strip())
        return Row(**job.case.model_dump(), run=run, key=key, round=0, status="ok", samples_s=[1.0], time_s=1.0)

    monkeypatch.setattr(long_arena_run, "row_of", stand_in)
    run(config(tmp_path, "sequence_lengths=64"))
    model = ModelConfig.model_validate({**TINY, "attention": "flash"})
    for weights in ("early", "late"):
        monkeypatch.setattr(long_arena_run, "_trained", lambda _, weights=weights: (model, weights))
        summary = run(config(tmp_path, "sequence_lengths=64", "checkpoint=somewhere"))
        assert [cost["attention"] for cost in summary["costs"]] == ["flash", "checkpoint"]
    assert asked == ["flash", "checkpoint early", "checkpoint late"]


def test_every_mistake_of_a_configuration_is_said_before_anything_runs(tmp_path: Path) -> None:
    for changes, message in (
        (["lengths=[1]"], "lengths: this key is unknown"),
        (["attentions=[flush]"], "flash"),
        (["attentions=[{name: flash, bits: 3}]"], "bits: this setting is unknown"),
        (["timeout_seconds=0"], "timeout_seconds: 0 is not allowed"),
        (["sequence_lengths=[64, 64]"], "64 is repeated"),
        (["model.d_modle=3"], "d_modle"),
        (["tasks={a: {seq_length: 3}}"], "tasks.a.task: this key is missing"),
        (['tasks={a: {task: "x:y", seq_length: 3, training: {batchsize: 1}}}'], "batchsize"),
    ):
        with pytest.raises(ConfigError, match=message):
            config(tmp_path, *changes)


def test_the_shipped_configurations_are_sound() -> None:
    full = load_arena_config()
    assert full.sequence_lengths == (1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072)
    guide = (full.num_samples_per_length, full.max_memory_gb, full.timeout_seconds)
    assert guide == (10, 16.0, 300)
    assert set(full.tasks) == {"list_ops", "text_classification", "needles", "variable_tracking", "mqar"}
    assert load_arena_config(QUICK).series()


def test_tasks_of_the_shipped_configuration_fit_their_lengths() -> None:
    """Each task's prompts and answers, with their special tokens, for training and evaluation."""
    full = load_arena_config()
    from harness.common.import_path import import_path

    for task in full.tasks.values():
        for seed in (0, 1):
            made: Any = import_path(task.task)
            lengths = [len(made(seed=seed, **task.settings).example(i).text) + 2 for i in range(30)]
            assert max(lengths) <= task.seq_length


def test_held_out_snippets_are_of_files_that_training_has_not_seen() -> None:
    splits = [text_classification(length=200, seed=seed).example(0).metadata["split"] for seed in (0, 1, 2)]
    assert splits == ["train", "held_out", "train"]


def row(n: int, label: str = "flash", **outcome: Any) -> Row:
    case = next(iter(cases_of(config(Path())))).case.model_copy(update={"n": n, "label": label})
    return Row(**case.model_dump(), run="r", key=f"{label}{n}", round=0, **outcome)


def test_the_summary_has_the_guides_keys_and_floor_aware_exponents() -> None:
    def fine(n: int) -> Row:
        times = [1.0 + 1e-4 * n, 1.01 + 1e-4 * n]
        cost = {"samples_s": times, "time_s": times[0], "tokens_per_s": n / times[0], "allocator_bytes": 100.0 * n}
        return row(n, status="ok", metrics={"rss_mb": 5.0}, **cost)

    lengths = [2**i for i in range(10, 18)]
    late = row(2**18, status="timeout", reason="no answer within 300 s")
    summary = summarise([late, *map(fine, lengths)])
    first, last = summary["costs"][0], summary["costs"][-1]
    assert (first["seq_len"], first["latency_ms"], first["rss_mb"]) == (1024, pytest.approx(1102.4), 5.0)
    assert first["tokens_per_sec"] == pytest.approx(1024 / 1.1024)
    assert (last["status"], last["latency_ms"], last["reason"]) == ("timeout", None, "no answer within 300 s")
    assert summary["scaling"]["flash"]["time"]["exponent"] == pytest.approx(1, abs=0.1)  # a plain slope says 0.5
    assert summary["scaling"]["flash"]["memory"]["exponent"] == pytest.approx(1, abs=0.01)
    assert json.loads(json.dumps(summary)) == summary


def test_fewer_than_three_lengths_have_no_exponent() -> None:
    ok: dict[str, Any] = {"status": "ok", "samples_s": [1.0], "time_s": 1.0}
    assert summarise([row(64, **ok), row(128, **ok)])["scaling"]["flash"]["time"] is None


def test_an_unusable_configuration_ends_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert long_arena.main(["--set", "attentions=[flush]", "--set", f"out={tmp_path}"]) == 2
    assert "flush" in capsys.readouterr().err
    absent = ["--set", f"checkpoint={tmp_path / 'none'}", "--set", f"out={tmp_path / 'run'}"]
    assert long_arena.main([str(QUICK), *absent]) == 2
    assert "there is no checkpoint" in capsys.readouterr().err


def test_rows_report_and_summary_of_a_run_that_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in for the child, so that nothing but the order of things is tried."""
    asked: list[tuple[str, int]] = []
    ends: dict[str, Any] = {"simhash": "timeout", "bit_sampling": "oom"}

    def stand_in(job: Any, key: str, run: str, executor: object, stopped: str = "") -> Row:
        asked.append((job.case.label, job.case.n))
        identity = {**job.case.model_dump(), "run": run, "key": key, "round": 0}
        if stopped:
            return Row(**identity, status="skipped", reason=stopped)
        if job.case.label in ends:
            return Row(**identity, status=ends[job.case.label], reason="too much")
        return Row(**identity, status="ok", samples_s=[1.0], time_s=1.0, tokens_per_s=1.0)

    monkeypatch.setattr(long_arena_run, "row_of", stand_in)
    three = "attentions=[flash, simhash, bit_sampling]"
    summary = run(config(tmp_path, three))
    assert [cost["status"] for cost in summary["costs"]] == ["ok", "ok", "timeout", "skipped", "oom", "skipped"]
    assert "64 tokens already ended in timeout" in summary["costs"][3]["reason"]
    (tmp_path / "run" / "children-of-a-killed-run").mkdir()
    longer = run(config(tmp_path, three, "sequence_lengths=[64, 128, 256]"))
    assert asked[6:] == [("flash", 256), ("simhash", 256), ("bit_sampling", 256)]
    assert len(longer["costs"]) == 9
    assert not list((tmp_path / "run").glob("children-*"))
    for name in ("report.html", "report.md", "benchmark_summary.json", "benchmark_summary.png", "run.json"):
        assert (tmp_path / "run" / name).stat().st_size > 100
    with pytest.raises(ValueError, match="another configuration, which differs in model: choose another `out`"):
        run(config(tmp_path, "model.d_model=64"))


def test_a_full_disk_keeps_the_rows_and_the_next_start_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Room for the rows and none for the figure."""
    asked: list[int] = []

    def stand_in(job: Any, key: str, run: str, *_: object) -> Row:
        asked.append(job.case.n)
        identity = {**job.case.model_dump(), "run": run, "key": key, "round": 0}
        return Row(**identity, status="ok", samples_s=[1.0], time_s=1.0, tokens_per_s=1.0)

    monkeypatch.setattr(long_arena_run, "row_of", stand_in)
    settings = [
        "sequence_lengths=[64, 128]",
        "device=cpu",
        "threads=1",
        "attentions=[flash]",
        f"out={tmp_path / 'run'}",
    ]
    command = [str(QUICK), *(word for setting in settings for word in ("--set", setting))]
    with no_room(4_000):
        assert long_arena.main(command) == 1
    assert "cannot be written: File too large; every row so far is kept" in capsys.readouterr().err
    assert len(read_rows(tmp_path / "run")) == 2
    assert long_arena.main(command) == 0
    assert asked == [64, 128]
    assert (tmp_path / "run" / "benchmark_summary.png").stat().st_size > 4_000


@pytest.mark.slow
def test_costs_and_tasks_are_measured_in_children_and_failures_are_rows(tmp_path: Path) -> None:
    tasks = {"echo": {"task": "tests.lsh_v2.arena.test_long_arena:Echo", "seq_length": 16}}
    training = {
        "model_size": None,
        "model": TINY | {"use_ponder": False},
        "pack": False,
        "batch_size": 16,
        "num_epochs": 1,
        "num_train_sequences": 1600,
        "num_eval_sequences": 16,
        "num_answers": 50,
        "learning_rate": 3e-3,
        "warmup_steps": 5,
        "profile_components": False,
    }
    settings = [f"tasks={json.dumps(tasks)}", f"training={json.dumps(training)}", "training_timeout_seconds=300"]
    both = f"attentions=[flash, '{__name__}:Hungry']"
    summary = run(config(tmp_path, both, *settings))
    statuses = {(cost["attention"], cost["seq_len"]): cost["status"] for cost in summary["costs"]}
    assert statuses == {("flash", 64): "ok", ("flash", 128): "ok", ("Hungry", 64): "ok", ("Hungry", 128): "oom"}
    learnt = {found["attention"]: found for found in summary["accuracies"]}
    assert learnt["flash"]["accuracy"] > 0.9
    assert learnt["flash"]["examples"] == 50
    rows = read_rows(tmp_path / "run")
    assert {type(one.case) for one in rows} == {Case}
    again = run(config(tmp_path, both, *settings))
    assert again == summary
    assert len(read_rows(tmp_path / "run")) == len(rows)
