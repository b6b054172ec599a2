"""Measures the planned cases: rounds outermost, a fresh child a case, a row for each, whatever happens.

The first round always completes; later ones are taken while the budget lasts, cheap cases first if not all fit.
Only cells whose answer was right and timed are measured again.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from attentions import resolve
from harness.attention_case import needs_calibration
from harness.config import Budget
from harness.executor import Executor, Limits, Outcome
from harness.forecast import Forecast
from harness.journal import Journal
from harness.plan import Planned, round_order
from harness.progress import Reporter
from harness.references import CALIBRATION, Store
from harness.rows import Case, Row
from harness.run_folder import FolderError
from harness.schedule import affordable, ascending
from harness.source import source_hash
from harness.subjects import SUBJECTS

INPUTS_S = 600.0  # making the inputs of one length is no case, and is charged to none
REPORT_SHARE, REPORT_MOST_S = 0.1, 20.0  # of the whole budget, kept for fits and report


@dataclass(frozen=True)
class Circumstances:
    """What all cases of a run share. `environment` is all that `run.json` says of machine and versions, as text.

    `flops_per_s` by dtype and `copy_bytes_per_s` are the measured ceilings, 0 where unknown. `memory_bytes` limits a
    case; None on devices other than the CPU, whose allocators say themselves when memory runs out.
    """

    run: str
    environment: str
    flops_per_s: dict[str, float]
    copy_bytes_per_s: float
    memory_bytes: int | None
    budget: Budget
    seed: int
    started_s: float


class Rounds:
    """One sweep over its cases. `earlier` are the rows of a run that is resumed."""

    def __init__(
        self,
        planned: Sequence[Planned],
        circumstances: Circumstances,
        journal: Journal,
        executor: Executor,
        cache: Path,
        reporter: Reporter,
        earlier: Iterable[Row] = (),
    ) -> None:
        self._planned, self._all = planned, circumstances
        self._journal, self._executor, self._reporter = journal, executor, reporter
        self._cache, self._store = cache, Store(cache)
        self._forecast = Forecast(circumstances.budget.case_s, circumstances.memory_bytes)
        self._done: set[tuple[str, int]] = set()
        self._repeatable: set[str] = set()
        self._without_inputs: dict[str, Outcome] = {}
        self._sources: dict[tuple[str, str], str] = {}
        for row in earlier:
            self._note(row, None)

    def run(self, check: Callable[[], None] = lambda: None) -> None:
        """Measure everything that is not there yet. `check` is called before each case, and may end all by raising."""
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
        outcome = self._refused(case) if number == 0 else None
        outcome = outcome or self._lacking_inputs(case) or self._measured(case, number)
        row = self._row(case, number, outcome)
        self._journal.append(row)
        self._note(row, outcome.wall_s)
        self._reporter.ended(row)

    def _note(self, row: Row, wall_s: float | None) -> None:
        self._done.add((row.key, row.round))
        if row.round == 0 and row.status == "ok" and row.time_s is not None:
            self._repeatable.add(row.key)
        self._forecast.learn(row, wall_s)

    def _refused(self, case: Case) -> Outcome | None:
        reason = self._forecast.refusal(case)
        return Outcome("ok", "", {"status": "skipped", "reason": reason}, 0.0) if reason else None

    def _lacking_inputs(self, case: Case) -> Outcome | None:
        """Make the inputs that a case needs and are not there; the outcome of trying, if it fails."""
        if case.subject not in SUBJECTS:
            return None
        variants = (0, 1, CALIBRATION) if needs_calibration(resolve(case.backend)) else (0, 1)
        missing = self._store.missing(case, variants)
        if not missing:
            return None
        known = self._without_inputs.get(name := str(missing) + self._store.name(case))
        if known is None:
            arguments = {"folder": str(self._cache), "case": case.model_dump(), "variants": missing}
            limits = Limits(INPUTS_S, file_bytes=None)
            made = self._executor.run("harness.references:make_references", arguments, limits)
            if made.status == "ok":
                self._stop_without_room(made.answer["unwritable"])
                return None
            known = Outcome(made.status, f"its inputs cannot be made: {made.reason}", {}, 0.0)
            self._without_inputs[name] = known
        return known

    def _stop_without_room(self, why: str) -> None:
        """Inputs that found no room say nothing of a case: it must be measured when there is some."""
        if why:
            raise FolderError(f"{self._cache} cannot be written: {why}; make room, and go on with --resume")

    def _measured(self, case: Case, number: int) -> Outcome:
        arguments = {
            "case": case.model_dump(),
            "key": self._key(case),
            "round": number,
            "folder": str(self._cache),
            "memory_bytes": self._all.memory_bytes,
            "expected_s": self._forecast.call_s(case),
            "flops_per_s": self._all.flops_per_s.get(case.dtype, 0.0),
            "copy_bytes_per_s": self._all.copy_bytes_per_s,
        }
        room = self._all.memory_bytes  # until it has mapped its inputs, a case needs room for them too
        limits = Limits(self._all.budget.case_s, None if room is None else room + self._store.size_bytes(case))
        return self._executor.run("harness.measure:measure", arguments, limits)

    def _row(self, case: Case, number: int, outcome: Outcome) -> Row:
        identity = {**case.model_dump(), "run": self._all.run, "key": self._key(case), "round": number}
        identity["wall_s"] = outcome.wall_s
        if outcome.status != "ok":
            return Row(**identity, status=outcome.status, reason=outcome.reason)
        try:
            return Row(**identity, **_finite(outcome.answer))
        except (ValidationError, TypeError) as error:
            words = " ".join(str(error).split())[:200]
            return Row(**identity, status="crash", reason=f"its answer is not understood: {words}")

    def _key(self, case: Case) -> str:
        if (names := (case.backend, case.subject)) not in self._sources:
            modules = [name.partition(":")[0] for name in names if ":" in name]
            modules.append(resolve(case.backend).__module__)
            self._sources[names] = source_hash(*modules)
        return case.digest(self._all.environment, self._sources[names])

    def _left_s(self) -> float:
        """Seconds until the budget for measuring is spent."""
        total_s = self._all.budget.total_s
        kept_s = min(REPORT_MOST_S, REPORT_SHARE * total_s)
        return self._all.started_s + total_s - kept_s - time.monotonic()

    def _left_in_all_s(self, todo: Sequence[Case]) -> float:
        """Seconds until the end of the sweep: the rest of the first round, and later rounds while they fit."""
        first_s = sum(map(self._forecast.first_s, todo))
        later_s = sum((one.rounds - 1) * self._forecast.later_s(one.case) for one in self._planned)
        return first_s + min(later_s, max(0.0, self._left_s() - first_s))


def _finite(answer: dict[str, Any]) -> dict[str, Any]:
    """An answer without metrics that are no finite numbers; JSON has no place for them."""
    metrics = answer.get("metrics") or {}
    return {**answer, "metrics": {name: value for name, value in metrics.items() if math.isfinite(value)}}
