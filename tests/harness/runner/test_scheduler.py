"""The rounds of a sweep, with an executor that only pretends."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Never, cast

import pytest
import torch
from safetensors.torch import save_file

from harness.common import source_hash as source
from harness.common.deadline import Start
from harness.common.rows import Case, Measurement, Row
from harness.config.model import SweepBudget
from harness.results.rows_file import Journal, read_rows
from harness.results.run_dir import FolderError
from harness.runner import scheduler as rounds
from harness.runner.case import MeasureCase, MeasuredCase
from harness.runner.executor import Executor, Limits, Outcome
from harness.runner.external import plan_here
from harness.runner.plan import Planned
from harness.runner.progress import PlainLog
from harness.runner.scheduler import Circumstances, Rounds
from harness.subjects.instantiate import Prime
from harness.subjects.references import MakeReferences, Store
from tests.harness.cases import a_case

Reply = Callable[[Case, int], Outcome[MeasuredCase]]


def measured(wall_s: float = 1.0, **found: Any) -> Outcome[MeasuredCase]:
    return Outcome("ok", "", MeasuredCase(Measurement(**found)), wall_s)


def ok(case: Case, number: int) -> Outcome[MeasuredCase]:
    return measured(status="ok", samples_s=[0.1, 0.2], time_s=0.15, metrics={"error": 0.1})


class Pretending:
    """Answers at once, and notes what it was asked."""

    def __init__(self, answer: Reply, inputs: Outcome[str] | None = None) -> None:
        self.answer, self.inputs = answer, inputs
        self.asked: list[tuple[Case, int]] = []
        self.made: list[list[int]] = []
        self.jobs: list[MeasureCase] = []
        self.limits: list[tuple[type, Limits]] = []
        self.primed: Outcome[list[str]] = Outcome("ok", "", [], 0.1)
        self.now = 0.0

    def run(self, job: Prime | MakeReferences | MeasureCase, limits: Limits) -> Outcome[Any]:
        self.limits.append((type(job), limits))
        if isinstance(job, Prime):
            return self.primed
        if isinstance(job, MakeReferences):
            self.made.append(job.variants)
            if self.inputs is None:
                store = Store(job.folder)
                for variant in job.variants:
                    store._inputs(job.case, variant).touch()
            return self.inputs or Outcome("ok", "", "", 0.1)
        self.asked.append((job.case, job.round))
        self.jobs.append(job)
        outcome = self.answer(job.case, job.round)
        self.now += outcome.wall_s
        return outcome


@pytest.fixture
def sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Row]]:
    """Run rounds on a clock that only cases move; returns all rows of the folder."""

    def run(
        executor: Pretending,
        planned: list[Planned],
        total_s: float = 1e6,
        environment: str = "here",
        check: Callable[[], None] = lambda: None,
        faults: dict[str, Outcome[Never]] | None = None,
        contents: dict[str, str] | None = None,
    ) -> list[Row]:
        monkeypatch.setattr(time, "monotonic", lambda: executor.now)
        budget = SweepBudget(case_s=60.0, memory_gb=1.0, total_s=total_s)
        circumstances = Circumstances("run", environment, {"float32": 1e9}, 1e9, 10**9, budget, 0, Start())
        earlier = read_rows(tmp_path)
        journal = Journal(tmp_path)
        try:
            made = replace(plan_here(planned), faults=faults or {}, contents=contents or {})
            pretending = cast(Executor, executor)
            rounds = Rounds(made, circumstances, journal, pretending, tmp_path, PlainLog(), earlier)
            rounds.prime()
            rounds.run(check)
        finally:
            journal.close()
        return read_rows(tmp_path)

    return run


def plan(rounds: int = 1, lengths: tuple[int, ...] = (128, 256, 512), **changes: Any) -> list[Planned]:
    return [Planned(a_case(n=n, **changes), rounds) for n in lengths]


def test_every_planned_case_has_a_row_in_each_round(sweep: Any) -> None:
    planned = plan(3)
    rows = sweep(Pretending(ok), planned)
    found = [(row.case, row.round) for row in rows]
    assert sorted(found, key=str) == sorted(((one.case, r) for one in planned for r in range(3)), key=str)
    assert [row.round for row in rows] == sorted(row.round for row in rows)
    assert {(row.time_s, row.wall_s) for row in rows} == {(0.15, 1.0)}


@pytest.mark.parametrize("cases", [2, 5])  # in the first round, and in a later one
def test_an_interruption_ends_any_round_before_its_next_case(sweep: Any, tmp_path: Path, cases: int) -> None:
    executor = Pretending(ok)

    def check() -> None:
        if len(executor.asked) == cases:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sweep(executor, plan(3), check=check)
    assert len(read_rows(tmp_path)) == cases


@pytest.mark.parametrize("status", ["oom", "timeout", "crash"])
def test_a_child_that_fails_has_a_row_with_status_and_reason(sweep: Any, status: Any) -> None:
    rows = sweep(Pretending(lambda case, number: Outcome(status, "in words", None, 1.0)), plan(2, (128,)))
    assert [(row.status, row.reason, row.time_s) for row in rows] == [(status, "in words", None)]


@pytest.mark.parametrize("status", ["wrong", "unsupported"])
def test_what_was_not_right_is_not_measured_again(sweep: Any, status: str) -> None:
    executor = Pretending(lambda case, number: measured(status=status, reason="so it is"))
    rows = sweep(executor, plan(4, (128,)))
    assert [(row.status, row.reason) for row in rows] == [(status, "so it is")]


def test_a_metric_that_is_no_finite_number_is_left_out(sweep: Any) -> None:
    metrics = {"error": float("nan"), "leak": 0.5}
    rows = sweep(Pretending(lambda case, number: measured(status="ok", metrics=metrics)), plan(1, (128,)))
    assert rows[0].metrics == {"leak": 0.5}


def test_after_running_out_of_memory_longer_ones_are_skipped_with_the_reason(sweep: Any) -> None:
    def answer(case: Case, number: int) -> Outcome[MeasuredCase]:
        return ok(case, number) if case.n < 256 else Outcome("oom", "no room", None, 1.0)

    executor = Pretending(answer)
    rows = {row.n: row for row in sweep(executor, plan(2))}
    assert [rows[n].status for n in (256, 512)] == ["oom", "skipped"]
    assert rows[512].reason == "not tried: this series already ran out of memory at 256 tokens"
    assert 512 not in [case.n for case, _ in executor.asked]


def test_a_case_is_told_what_shorter_ones_took(sweep: Any) -> None:
    executor = Pretending(ok)
    sweep(executor, plan())
    assert [job.expected_s for job in executor.jobs] == [None, None, pytest.approx(0.1)]


def test_inputs_are_made_once_for_all_backends_and_rounds(sweep: Any) -> None:
    executor = Pretending(ok)
    sweep(executor, plan(2, (128,)) + plan(2, (128,), backend="tests.harness.backends:Inexact", label="other"))
    assert executor.made == [[0, 1]]


def test_only_backends_that_learn_have_a_calibration_sample_made(sweep: Any) -> None:
    executor = Pretending(ok)
    sweep(executor, plan(1, (128,), backend="tests.harness.backends:Calibrated"))
    assert executor.made == [[0, 1, 2]]


def test_inputs_that_cannot_be_made_are_the_reason_of_each_case_and_tried_once(sweep: Any) -> None:
    executor = Pretending(ok, inputs=Outcome("crash", "ValueError: no text", None, 1.0))
    rows = sweep(executor, plan(1, (128,)) + plan(1, (128,), label="other"))
    assert {(row.status, row.reason) for row in rows} == {
        ("crash", "its inputs cannot be created: ValueError: no text")
    }
    assert (len(rows), len(executor.made), executor.asked) == (2, 1, [])


def test_a_full_disk_ends_the_sweep_and_leaves_the_case_to_the_next(sweep: Any) -> None:
    full = Pretending(ok, inputs=Outcome("ok", "", "No space left on device", 1.0))
    with pytest.raises(FolderError, match="No space left on device; free some space and continue with --resume"):
        sweep(full, plan(1, (128, 256)))
    assert full.asked == []
    rows = sweep(Pretending(ok), plan(1, (128, 256)))
    assert [(row.n, row.status) for row in rows] == [(128, "ok"), (256, "ok")]


def test_the_first_round_completes_whatever_the_budget(sweep: Any) -> None:
    assert len(sweep(Pretending(ok), plan(3), total_s=0.001)) == 3


def test_later_rounds_are_taken_while_the_budget_lasts_cheap_cases_first(sweep: Any) -> None:
    def answer(case: Case, number: int) -> Outcome[MeasuredCase]:
        time_s = case.n / 100  # 1.28, 2.56 and 5.12 s a call; a later round takes two calls
        return measured(2 * time_s, status="ok", time_s=time_s, samples_s=[time_s])

    executor = Pretending(answer)
    rows = sweep(executor, plan(6), total_s=40.0)
    rounds = {n: sum(row.n == n for row in rows) for n in (128, 256, 512)}
    assert rounds[128] >= rounds[256] >= rounds[512] >= 1
    assert rounds[128] > rounds[512]
    assert executor.now <= 40.0


def test_resuming_measures_nothing_twice_and_loses_nothing(sweep: Any) -> None:
    planned = plan(3)
    executor = Pretending(ok)

    def dying(case: Case, number: int) -> Outcome[MeasuredCase]:
        if len(executor.asked) == 5:
            raise KeyboardInterrupt
        return ok(case, number)

    executor.answer = dying
    with pytest.raises(KeyboardInterrupt):
        sweep(executor, planned)
    again = Pretending(ok)
    rows = sweep(again, planned)
    assert len(again.asked) == 9 - 4
    found = [(row.key, row.round) for row in rows]
    assert len(found) == len(set(found)) == 9


def test_a_subject_that_reads_other_files_is_measured_anew(sweep: Any) -> None:
    for content, asked in (("one", 3), ("one", 0), ("two", 3), ("one", 0)):
        executor = Pretending(ok)
        sweep(executor, plan(), contents={"attention": content})
        assert len(executor.asked) == asked


def test_another_environment_is_measured_anew(sweep: Any) -> None:
    sweep(Pretending(ok), plan())
    again = Pretending(ok)
    sweep(again, plan(), environment="elsewhere")
    assert len(again.asked) == 3


def test_a_changed_backend_is_measured_anew(sweep: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep(Pretending(ok), plan())
    monkeypatch.setattr("harness.runner.scheduler.source_hash", lambda *modules: "changed")
    again = Pretending(ok)
    sweep(again, plan())
    assert len(again.asked) == 3


RIGHT = "tests.harness.backends:Right"


def test_an_outsider_that_does_not_return_from_a_few_tokens_has_had_its_time(sweep: Any) -> None:
    executor = Pretending(ok)
    executor.primed = Outcome("timeout", "no answer within 60 s", None, 60.0)
    rows = {row.n: row for row in sweep(executor, plan(2))}
    assert {n: row.status for n, row in rows.items()} == {128: "timeout", 256: "skipped", 512: "skipped"}
    assert rows[128].reason == "on 16 tokens, before the first case: no answer within 60 s"
    assert executor.asked == []
    assert executor.limits[0] == (Prime, Limits(60.0, 10**9))


def test_a_run_that_is_resumed_does_not_wait_for_it_again(sweep: Any) -> None:
    executor = Pretending(ok)
    executor.primed = Outcome("timeout", "no answer within 60 s", None, 60.0)
    sweep(executor, plan(1))
    sweep(executor, plan(1))
    assert [name for name, _ in executor.limits] == [Prime]


@pytest.mark.parametrize("status", ["crash", "oom"])
def test_what_else_fails_on_a_few_tokens_is_tried_all_the_same(sweep: Any, status: Any) -> None:
    executor = Pretending(ok)
    executor.primed = Outcome(status, "not on so few", None, 1.0)
    assert [row.status for row in sweep(executor, plan(1))] == ["ok"] * 3


def test_the_project_s_own_kernels_have_time_to_be_compiled(sweep: Any) -> None:
    executor = Pretending(ok)
    executor.primed = Outcome("timeout", "no answer", None, 600.0)
    rows = sweep(executor, plan(1, (128,), backend="vanilla"))
    assert executor.limits[0] == (Prime, Limits(rounds.BUILD_S))
    assert [row.status for row in rows] == ["ok"]


def test_what_looking_at_an_outsider_came_to_is_the_outcome_of_all_its_cases(sweep: Any) -> None:
    executor = Pretending(ok)
    sound = plan(2, (128, 256), backend="vanilla", label="vanilla")
    rows = sweep(executor, plan(2, (128, 256)) + sound, faults={RIGHT: Outcome("timeout", "within 5 s", None, 5.0)})
    assert sorted((row.label, row.n, row.round, row.status) for row in rows) == [
        ("right", 128, 0, "timeout"),
        ("right", 256, 0, "timeout"),
        *(("vanilla", n, number, "ok") for n in (128, 256) for number in (0, 1)),
    ]
    assert {case.label for case, _ in executor.asked} == {"vanilla"}


def test_a_fingerprint_that_finds_no_room_is_told_and_costs_no_row(sweep: Any, capsys: Any) -> None:
    def answer(case: Case, number: int) -> Outcome[MeasuredCase]:
        outcome = ok(case, number)
        assert outcome.answer is not None
        return (
            outcome
            if number
            else replace(outcome, answer=replace(outcome.answer, unwritable="No space left on device"))
        )

    rows = sweep(Pretending(answer), plan(2, (128,)))
    assert [(row.status, row.round) for row in rows] == [("ok", 0), ("ok", 1)]
    assert "later rounds check this case in full: No space left on device" in capsys.readouterr().err


def own_file(path: Path, value: float) -> str:
    save_file({name: torch.full((1, 2, 600, 16), value) for name in "qkv"}, path)
    return str(path)


def forget_sources() -> None:
    for known in (source._find, source._tree, source._meaning):
        known.cache_clear()


def test_inputs_from_a_file_are_measured_again_once_it_holds_something_else(sweep: Any, tmp_path: Path) -> None:
    path = tmp_path / "own.safetensors"
    planned = plan(1, (128,), inputs=own_file(path, 1.0))
    sweep(Pretending(ok), planned)
    same = Pretending(ok)
    own_file(path, 1.0)
    os.utime(path, (1, 1))
    sweep(same, planned)
    assert same.asked == []
    other = Pretending(ok)
    own_file(path, 2.0)
    rows = sweep(other, planned)
    assert len(other.asked) == 1
    assert len({row.key for row in rows}) == 2


def test_inputs_from_a_text_file_are_measured_again_once_it_says_something_else(sweep: Any, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("some words")
    planned = plan(1, (128,), inputs=f"text:{text}")
    sweep(Pretending(ok), planned)
    text.write_text("other words")
    again = Pretending(ok)
    sweep(again, planned)
    assert len(again.asked) == 1


@pytest.mark.parametrize("changed", ["inputs_of_mine.py", "helper_of_mine.py"])
@pytest.mark.parametrize("kind", ["inputs", "subject"])
def test_inputs_and_subjects_are_measured_again_once_their_code_or_what_it_imports_has_changed(
    sweep: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: str, kind: str
) -> None:
    (tmp_path / "inputs_of_mine.py").write_text("from helper_of_mine import value\nmake = value\n")
    (tmp_path / "helper_of_mine.py").write_text("value = 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    mine = lambda modules: [name for name in modules if name.endswith("_of_mine")]  # noqa: E731
    monkeypatch.setattr(rounds, "source_hash", lambda *modules: source.source_hash(*mine(modules)))
    planned = plan(1, (128,), **{kind: "inputs_of_mine:make"})
    forget_sources()
    sweep(Pretending(ok), planned)
    forget_sources()
    same = Pretending(ok)
    sweep(same, planned)
    assert same.asked == []
    (tmp_path / changed).write_text((tmp_path / changed).read_text() + "more = 2\n")
    forget_sources()
    again = Pretending(ok)
    sweep(again, planned)
    assert len(again.asked) == 1


def test_inputs_that_a_function_never_returns_cost_the_limit_of_a_case(sweep: Any, tmp_path: Path) -> None:
    executor = Pretending(ok, inputs=Outcome("timeout", "no answer within 60 s", None, 60.0))
    rows = sweep(executor, plan(1, (128,), inputs="tests.harness.backends:softmax"))
    assert [row.status for row in rows] == ["timeout"]
    assert dict(executor.limits)[MakeReferences].time_s == 60.0
