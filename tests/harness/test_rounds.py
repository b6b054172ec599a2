"""The rounds of a sweep, with an executor that only pretends."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from harness.config import Budget
from harness.executor import Executor, Limits, Outcome
from harness.journal import Journal, read_rows
from harness.plan import Planned
from harness.progress import PlainLog
from harness.references import Store
from harness.rounds import Circumstances, Rounds
from harness.rows import Case, Row
from harness.run_folder import FolderError
from tests.harness.cases import a_case

Answer = Callable[[Case, int], Outcome]


def ok(case: Case, number: int) -> Outcome:
    answer = {"status": "ok", "reason": "", "samples_s": [0.1, 0.2], "time_s": 0.15, "metrics": {"error": 0.1}}
    return Outcome("ok", "", answer, 1.0)


class Pretending:
    """Answers at once, and notes what it was asked."""

    def __init__(self, answer: Answer, inputs: Outcome | None = None) -> None:
        self.answer, self.inputs = answer, inputs
        self.asked: list[tuple[Case, int]] = []
        self.made: list[list[int]] = []
        self.arguments: list[dict[str, Any]] = []
        self.now = 0.0

    def run(self, function: str, arguments: dict[str, Any], limits: Limits) -> Outcome:
        case = Case(**arguments["case"])
        if function == "harness.references:make_references":
            self.made.append(arguments["variants"])
            if self.inputs is None:
                store = Store(Path(arguments["folder"]))
                for variant in arguments["variants"]:
                    store._inputs(case, variant).touch()
            return self.inputs or Outcome("ok", "", {"unwritable": ""}, 0.1)
        self.asked.append((case, arguments["round"]))
        self.arguments.append(arguments)
        outcome = self.answer(case, arguments["round"])
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
    ) -> list[Row]:
        monkeypatch.setattr(time, "monotonic", lambda: executor.now)
        budget = Budget(case_s=60.0, memory_gb=1.0, total_s=total_s)
        circumstances = Circumstances("run", environment, {"float32": 1e9}, 1e9, 10**9, budget, 0, 0.0)
        earlier = read_rows(tmp_path)
        journal = Journal(tmp_path)
        try:
            Rounds(planned, circumstances, journal, cast(Executor, executor), tmp_path, PlainLog(), earlier).run(check)
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
    rows = sweep(Pretending(lambda case, number: Outcome(status, "in words", {}, 1.0)), plan(2, (128,)))
    assert [(row.status, row.reason, row.time_s) for row in rows] == [(status, "in words", None)]


@pytest.mark.parametrize("status", ["wrong", "unsupported"])
def test_what_was_not_right_is_not_measured_again(sweep: Any, status: str) -> None:
    executor = Pretending(lambda case, number: Outcome("ok", "", {"status": status, "reason": "so it is"}, 1.0))
    rows = sweep(executor, plan(4, (128,)))
    assert [(row.status, row.reason) for row in rows] == [(status, "so it is")]


@pytest.mark.parametrize(
    "answer", [{}, {"status": "fine"}, {"status": "ok", "time_s": "soon"}, {"status": "ok", "x": 1}]
)
def test_an_answer_that_is_no_outcome_is_a_crash(sweep: Any, answer: dict[str, Any]) -> None:
    rows = sweep(Pretending(lambda case, number: Outcome("ok", "", answer, 1.0)), plan(1, (128,)))
    assert [(row.status, row.reason[:30]) for row in rows] == [("crash", "its answer is not understood: ")]


def test_a_metric_that_is_no_finite_number_is_left_out(sweep: Any) -> None:
    answer = {"status": "ok", "metrics": {"error": float("nan"), "leak": 0.5}}
    rows = sweep(Pretending(lambda case, number: Outcome("ok", "", answer, 1.0)), plan(1, (128,)))
    assert rows[0].metrics == {"leak": 0.5}


def test_after_running_out_of_memory_longer_ones_are_skipped_with_the_reason(sweep: Any) -> None:
    def answer(case: Case, number: int) -> Outcome:
        return ok(case, number) if case.n < 256 else Outcome("oom", "no room", {}, 1.0)

    executor = Pretending(answer)
    rows = {row.n: row for row in sweep(executor, plan(2))}
    assert [rows[n].status for n in (256, 512)] == ["oom", "skipped"]
    assert rows[512].reason == "not tried: this series ran out of memory at 256 tokens already"
    assert 512 not in [case.n for case, _ in executor.asked]


def test_a_case_is_told_what_shorter_ones_took(sweep: Any) -> None:
    executor = Pretending(ok)
    sweep(executor, plan())
    assert [arguments["expected_s"] for arguments in executor.arguments] == [None, None, pytest.approx(0.1)]


def test_inputs_are_made_once_for_all_backends_and_rounds(sweep: Any) -> None:
    executor = Pretending(ok)
    sweep(executor, plan(2, (128,)) + plan(2, (128,), backend="tests.harness.backends:Inexact", label="other"))
    assert executor.made == [[0, 1]]


def test_only_backends_that_learn_have_a_calibration_sample_made(sweep: Any) -> None:
    executor = Pretending(ok)
    sweep(executor, plan(1, (128,), backend="tests.harness.backends:Calibrated"))
    assert executor.made == [[0, 1, 2]]


def test_inputs_that_cannot_be_made_are_the_reason_of_each_case_and_tried_once(sweep: Any) -> None:
    executor = Pretending(ok, inputs=Outcome("crash", "ValueError: no text", {}, 1.0))
    rows = sweep(executor, plan(1, (128,)) + plan(1, (128,), label="other"))
    assert {(row.status, row.reason) for row in rows} == {("crash", "its inputs cannot be made: ValueError: no text")}
    assert (len(rows), len(executor.made), executor.asked) == (2, 1, [])


def test_a_full_disk_ends_the_sweep_and_leaves_the_case_to_the_next(sweep: Any) -> None:
    full = Pretending(ok, inputs=Outcome("ok", "", {"unwritable": "No space left on device"}, 1.0))
    with pytest.raises(FolderError, match="No space left on device; make room, and go on with --resume"):
        sweep(full, plan(1, (128, 256)))
    assert full.asked == []
    rows = sweep(Pretending(ok), plan(1, (128, 256)))
    assert [(row.n, row.status) for row in rows] == [(128, "ok"), (256, "ok")]


def test_the_first_round_completes_whatever_the_budget(sweep: Any) -> None:
    assert len(sweep(Pretending(ok), plan(3), total_s=0.001)) == 3


def test_later_rounds_are_taken_while_the_budget_lasts_cheap_cases_first(sweep: Any) -> None:
    def answer(case: Case, number: int) -> Outcome:
        time_s = case.n / 100  # 1.28, 2.56 and 5.12 s a call; a later round takes two calls
        answer = {"status": "ok", "time_s": time_s, "samples_s": [time_s]}
        return Outcome("ok", "", answer, 2 * time_s)

    executor = Pretending(answer)
    rows = sweep(executor, plan(6), total_s=40.0)
    rounds = {n: sum(row.n == n for row in rows) for n in (128, 256, 512)}
    assert rounds[128] >= rounds[256] >= rounds[512] >= 1
    assert rounds[128] > rounds[512]
    assert executor.now <= 40.0


def test_resuming_measures_nothing_twice_and_loses_nothing(sweep: Any) -> None:
    planned = plan(3)
    executor = Pretending(ok)

    def dying(case: Case, number: int) -> Outcome:
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


def test_another_environment_is_measured_anew(sweep: Any) -> None:
    sweep(Pretending(ok), plan())
    again = Pretending(ok)
    sweep(again, plan(), environment="elsewhere")
    assert len(again.asked) == 3


def test_a_changed_backend_is_measured_anew(sweep: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep(Pretending(ok), plan())
    monkeypatch.setattr("harness.rounds.source_hash", lambda *modules: "changed")
    again = Pretending(ok)
    sweep(again, plan())
    assert len(again.asked) == 3
