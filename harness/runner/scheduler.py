"""Measure the planned cases round by round, each in a fresh child, and write a row for each whatever happens.

The first round always completes. Later rounds run while the budget lasts, cheap cases first if not all fit. Only cases
with a correct, timed answer are measured again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Never

from harness.common.deadline import Deadline, Start
from harness.common.import_path import is_path
from harness.common.rows import Case, Measurement, Row
from harness.common.source_hash import source_hash
from harness.inputs import identity
from harness.measure.gate import Ceilings
from harness.results.run_dir import FolderError
from harness.runner.case import MeasureCase, MeasuredCase
from harness.runner.executor import Executor, Limits, Outcome
from harness.runner.forecast import Forecast
from harness.runner.order import affordable, ascending
from harness.runner.plan import round_order
from harness.subjects.base import SUBJECTS
from harness.subjects.instantiate import PRIME_TOKENS, Prime
from harness.subjects.references import CALIBRATION, MakeReferences, Store

if TYPE_CHECKING:
    from harness.config.model import SweepBudget
    from harness.results.rows_file import Journal
    from harness.runner.external import SweepPlan
    from harness.runner.progress import Reporter

INPUTS_S = 600.0  # limit for making the inputs of one length, which is charged to no case
BUILD_S = 600.0  # limit for compiling the project's own kernels, which is charged to no case either
REPORT_SHARE, REPORT_MOST_S = 0.1, 20.0  # of the whole budget, reserved for fits and report


@dataclass(frozen=True)
class Circumstances:
    """What all cases of a run share. `environment` is the machine and versions from `run.json`, as text.

    `flops_per_s` by dtype and `copy_bytes_per_s` are the measured ceilings, 0 if unknown. `memory_bytes` limits a case;
    it is None on devices other than the CPU, whose allocators report themselves when memory runs out.
    """

    run: str
    environment: str
    flops_per_s: dict[str, float]
    copy_bytes_per_s: float
    memory_bytes: int | None
    budget: SweepBudget
    seed: int
    started: Start


class Rounds:
    """One sweep over its cases. `earlier` holds the rows of a resumed run."""

    def __init__(
        self,
        plan: SweepPlan,
        circumstances: Circumstances,
        journal: Journal,
        executor: Executor,
        cache: Path,
        reporter: Reporter,
        earlier: Iterable[Row] = (),
    ) -> None:
        self._plan, self._planned, self._all = plan, plan.planned, circumstances
        self._journal, self._executor, self._reporter = journal, executor, reporter
        self._cache, self._store = cache, Store(cache)
        self._forecast = Forecast(circumstances.budget.case_s, circumstances.memory_bytes)
        self._done: set[tuple[str, int]] = set()
        self._repeatable: set[str] = set()
        self._unprimed: dict[str, Outcome[Never]] = {}
        self._without_inputs: dict[str, Outcome[Never]] = {}
        self._identities: dict[tuple[str, ...], str] = {}
        for row in earlier:
            self._note(row)

    def run(self, check: Callable[[], None] = lambda: None) -> None:
        """Measure everything that is not recorded yet.

        `check` is called before each case and may stop the sweep by raising.
        """
        first = ascending(round_order(self._planned, 0, self._all.seed))
        todo = [case for case in first if (self._key(case), 0) not in self._done]
        self._reporter.round(1, len(todo))
        for position, case in enumerate(todo):
            check()
            self._reporter.starts(case, self._left_in_all_s(todo[position:]))
            self._one(case, 0)
        for number in range(1, max(one.rounds for one in self._planned)):
            cases = [case for case in round_order(self._planned, number, self._all.seed) if self._again(case, number)]
            chosen = affordable(cases, self._forecast.later_s, self._left_s())
            if len(chosen) < len(cases):
                self._reporter.note(f"round {number + 1}: {len(chosen)} of {len(cases)} cases fit into budget.total_s")
            if chosen:
                self._later_round(number, chosen, check)

    def prime(self) -> None:
        """Run each backend once on a few tokens, so that anything compiled on first use exists before the first case.

        If an external backend times out here, its shortest case is not tried and gets the timeout as its outcome.
        Other errors here also occur in the cases, which report them. Warnings about failed compilation are reported
        here.
        """
        first: dict[str, Case] = {}
        for one in sorted(self._planned, key=lambda one: one.case.n):
            if one.case.subject in SUBJECTS and self._plan.fault(one.case) is None:
                first.setdefault(one.case.backend, one.case)
        warned: dict[str, None] = {}
        for case in first.values():
            if (key := self._key(case), 0) in self._done and key not in self._repeatable:
                continue  # it failed in an earlier run
            outsider = is_path(case.backend)
            limits = Limits(self._all.budget.case_s, self._all.memory_bytes) if outsider else Limits(BUILD_S)
            outcome = self._executor.run(Prime(case), limits)
            warned |= dict.fromkeys(outcome.answer or ())
            if outsider and outcome.status == "timeout":
                reason = f"on {PRIME_TOKENS} tokens, before the first case: {outcome.reason}"
                self._unprimed[case.digest()] = Outcome("timeout", reason, None, outcome.wall_s, outcome.cpu_s)
        for warning in warned:
            self._reporter.note(warning)

    def _later_round(self, number: int, chosen: Sequence[Case], check: Callable[[], None]) -> None:
        self._reporter.round(number + 1, len(chosen))
        for position, case in enumerate(chosen):
            check()
            if self._forecast.later_s(case) <= self._left_s():
                self._reporter.starts(case, sum(map(self._forecast.later_s, chosen[position:])))
                self._one(case, number)

    def _again(self, case: Case, number: int) -> bool:
        key = self._key(case)
        return key in self._repeatable and (key, number) not in self._done

    def _one(self, case: Case, number: int) -> None:
        outcome = self._known_to_fail(case) if number == 0 else None
        outcome = outcome or self._lacking_inputs(case) or self._measured(case, number)
        if outcome.answer and outcome.answer.unwritable:
            self._reporter.note(
                f"{self._cache} cannot be written, so later rounds check this case in full: {outcome.answer.unwritable}"
            )
        row = self._row(case, number, outcome)
        self._journal.append(row)
        self._note(row, outcome)
        self._reporter.ended(row)

    def _note(self, row: Row, outcome: Outcome[object] | None = None) -> None:
        self._done.add((row.key, row.round))
        if row.round == 0 and row.status == "ok" and row.time_s is not None:
            self._repeatable.add(row.key)
        if outcome is None:
            self._forecast.learn(row)
        else:
            self._forecast.learn(row, outcome.wall_s, outcome.cpu_s / row.threads)

    def _known_to_fail(self, case: Case) -> Outcome[MeasuredCase] | None:
        """Return the outcome of a case that need not be tried or has already timed out; otherwise None."""
        if known := self._plan.fault(case) or self._unprimed.get(case.digest()):
            return known
        reason = self._forecast.refusal(case)
        skipped = MeasuredCase(Measurement(status="skipped", reason=reason))
        return Outcome("ok", "", skipped, 0.0) if reason else None

    def _lacking_inputs(self, case: Case) -> Outcome[Never] | None:
        """Make the inputs that a case needs and that do not exist yet; return the outcome if that fails."""
        if case.subject not in SUBJECTS:
            return None
        variants = (0, 1, CALIBRATION) if self._plan.classes[case.backend].learns else (0, 1)
        missing = self._store.missing(case, variants)
        if not missing:
            return None
        known = self._without_inputs.get(name := str(missing) + self._store.name(case))
        if known is None:
            limits = Limits(self._all.budget.case_s if is_path(case.inputs) else INPUTS_S, file_bytes=None)
            made = self._executor.run(MakeReferences(self._cache, case, missing), limits)
            if made.answer is not None:
                self._stop_without_room(made.answer)
                return None
            known = Outcome(made.status, f"its inputs cannot be created: {made.reason}", None, 0.0)
            self._without_inputs[name] = known
        return known

    def _stop_without_room(self, why: str) -> None:
        """Raise FolderError if the disk is full: that says nothing about the case, which must be measured later."""
        if why:
            raise FolderError(f"{self._cache} cannot be written: {why}; free some space and continue with --resume")

    def _measured(self, case: Case, number: int) -> Outcome[MeasuredCase]:
        job = MeasureCase(
            case=case,
            key=self._key(case),
            round=number,
            folder=self._cache,
            memory_bytes=self._all.memory_bytes,
            expected_s=self._forecast.call_s(case),
            ceilings=Ceilings(self._all.flops_per_s.get(case.dtype, 0.0), self._all.copy_bytes_per_s),
        )
        room = self._all.memory_bytes  # before its inputs are mapped, a case needs memory for them too
        limits = Limits(self._all.budget.case_s, None if room is None else room + self._store.size_bytes(case))
        return self._executor.run(job, limits)

    def _row(self, case: Case, number: int, outcome: Outcome[MeasuredCase]) -> Row:
        identity = {**case.model_dump(), "run": self._all.run, "key": self._key(case), "round": number}
        identity["wall_s"] = outcome.wall_s
        if outcome.answer is None:
            return Row(**identity, status=outcome.status, reason=outcome.reason)
        found = outcome.answer.measurement
        finite = {name: value for name, value in found.metrics.items() if math.isfinite(value)}  # JSON has no others
        return Row(**identity, **found.model_dump(exclude={"metrics"}), metrics=finite)

    def _key(self, case: Case) -> str:
        """Hash everything that decides a row: the case, the environment, the code and the contents of its inputs."""
        names = (case.backend, case.subject, case.inputs)
        if names not in self._identities:
            self._identities[names] = " ".join(
                (
                    source_hash(*dict.fromkeys([*_module(case.backend), self._plan.classes[case.backend].module])),
                    source_hash("harness.runner.case", *_module(SUBJECTS.get(case.subject, case.subject))),
                    identity(case.inputs),
                    self._plan.contents.get(case.subject, ""),
                )
            )
        return case.digest(self._all.environment, self._identities[names])

    def _left_s(self) -> float:
        """Return the seconds until the measuring budget is spent."""
        total_s = self._all.budget.total_s
        kept_s = min(REPORT_MOST_S, REPORT_SHARE * total_s)
        return Deadline(total_s - kept_s, self._all.started).left_s()

    def _left_in_all_s(self, todo: Sequence[Case]) -> float:
        """Return the predicted seconds until the sweep ends: the rest of the first round, and later rounds that fit."""
        first_s = sum(map(self._forecast.first_s, todo))
        later_s = sum((one.rounds - 1) * self._forecast.later_s(one.case) for one in self._planned)
        return first_s + min(later_s, max(0.0, self._left_s() - first_s))


def _module(name: str) -> list[str]:
    """Return the module of an import path, as a list of at most one."""
    return [name.partition(":")[0]] if is_path(name) else []
