"""One case in its child: set up, take memory, check, time, count. The answer is the outcome part of a row.

The order matters. The first call is the memory pass, whose answer the gate checks; the second call, on the other
set of inputs, is checked too, and is the timed one where a call takes more than a second; shorter calls are then
warmed up and timed, and the last timed answer is checked as well. A wrong answer has no time.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from harness import clock, gate, memory
from harness.ceilings import measure_ceilings
from harness.load import Load, cores
from harness.references import Store, UnwritableError
from harness.rows import Case
from harness.subjects import Facts, Finding, Trial, Unsupported, subject_of

LOOKS, LOOK_S = 4, 0.8  # at this machine's ceilings, before a time is called impossible


@dataclass(frozen=True)
class Peaks:
    """Bytes of one call: the resident peak and the allocator's; None where not measured."""

    peak_bytes: float | None = None
    allocator_bytes: float | None = None


def measure(
    *,
    case: dict[str, Any],
    key: str,
    round: int,  # noqa: A002, the word for it in rows
    folder: str,
    memory_bytes: int | None,
    expected_s: float | None,
    flops_per_s: float,
    copy_bytes_per_s: float,
) -> dict[str, Any]:
    """What a child does for one case and round; called by `harness.executor` with plain data.

    `folder` holds the shared inputs, `memory_bytes` is what the case may take beyond its inputs, `expected_s` how
    long a call should take judging by shorter lengths, and the ceilings are this machine's, 0 where unknown.
    """
    this = Case(**case)
    torch.set_num_threads(this.threads)
    torch.manual_seed(this.seed)
    memory.return_freed_memory()
    try:
        trial = subject_of(this.subject).setup(this, Store(Path(folder)), key)
    except Unsupported as reason:
        return {"status": "unsupported", "reason": str(reason)}
    memory.limit(None)
    trial.warm()  # starts threads, whose stacks are not the case's
    memory.limit(memory_bytes)
    run = _Run(trial, gate.Ceilings(flops_per_s, copy_bytes_per_s), this)
    return run.first(expected_s) if round == 0 else run.later()


class _Run:
    """One trial on its way through the passes; stops at the first wrong answer."""

    def __init__(self, trial: Trial, ceilings: gate.Ceilings, case: Case) -> None:
        self.trial, self.ceilings, self.case = trial, ceilings, case
        self.metrics: dict[str, float] = {}
        self.peaks = Peaks()
        self.measured_s = self.others_s = 0.0

    def first(self, expected_s: float | None) -> dict[str, Any]:
        """All passes, and what later rounds need to know."""
        # The callee has the only reference to the answer, and frees it before it takes times.
        result = self._gated(self._weighed(expected_s) if self.trial.timed else self._called(), thorough=True)
        if result["status"] == "ok":
            try:
                self.trial.keep()
            except UnwritableError as error:  # says nothing of the method
                result["unwritable"] = str(error)
        return result

    def later(self) -> dict[str, Any]:
        """Time alone; answers are compared with those of the first round."""
        memory.keep_freed_memory()
        return self._gated(self._called(), thorough=False)

    def _called(self) -> Any:
        with self._measuring():
            return self.trial.call(0)

    def _weighed(self, expected_s: float | None) -> Any:
        with self._measuring():
            self.peaks, answer = _memory_pass(self.trial, expected_s)
        return answer

    def _gated(self, answer: Any, *, thorough: bool) -> dict[str, Any]:
        wrong = self._check(0, answer)
        del answer
        samples_s: list[float] = []
        if not wrong:
            with self._measuring():
                answer, seconds = clock.time_once(lambda: self.trial.call(1), self.trial.device)
            wrong = self._check(1, answer)
            del answer
            samples_s = [seconds]
        if self.trial.timed and not wrong and samples_s[0] <= clock.LONG_S:
            with self._measuring():
                timing = clock.time_calls(self.trial, self.trial.device, samples_s[0])
            wrong = self._check(timing.variant, timing.answer)
            samples_s = timing.samples_s
            wrong = wrong or ("" if samples_s else "no time was taken: the clock of this machine stands still")
        with memory.unmeasured():
            facts = self.trial.facts(thorough=thorough)
        if self.trial.timed and not wrong:
            wrong = self._too_fast(statistics.median(samples_s), facts)
        return self._result(wrong, samples_s if self.trial.timed else [], facts)

    @contextmanager
    def _measuring(self) -> Iterator[None]:
        started, load = time.perf_counter(), Load()
        yield
        self.measured_s += time.perf_counter() - started
        self.others_s += load.others_s()

    def _check(self, variant: int, answer: Any) -> str:
        with memory.unmeasured():
            finding: Finding = self.trial.check(variant, answer)
        self.metrics |= finding.metrics
        return finding.wrong

    def _too_fast(self, time_s: float, facts: Facts) -> str:
        flops = facts.flops or 0.0
        if not gate.too_fast(time_s, flops, facts.moved_bytes, self.ceilings):
            return ""
        # The machine may have been busy when its ceilings were measured; what stands must beat further looks.
        for _ in range(LOOKS):
            again = measure_ceilings(
                device=self.case.device, dtypes=[self.case.dtype], threads=self.case.threads, budget_s=LOOK_S
            )
            self.ceilings = gate.Ceilings(
                max(self.ceilings.flops_per_s, again["flops_per_s"][self.case.dtype]),
                max(self.ceilings.copy_bytes_per_s, again["copy_bytes_per_s"]),
            )
            if not gate.too_fast(time_s, flops, facts.moved_bytes, self.ceilings):
                break
        return gate.too_fast(time_s, flops, facts.moved_bytes, self.ceilings)

    def _result(self, wrong: str, samples_s: list[float], facts: Facts) -> dict[str, Any]:
        known = asdict(facts)
        moved_bytes = known.pop("moved_bytes")
        result = {"status": "wrong" if wrong else "ok", "reason": wrong, "metrics": self.metrics}
        result["measured_s"] = self.measured_s
        there_s = self.measured_s * len(cores())
        result["others_share"] = max(0.0, self.others_s) / there_s if there_s > 0 else 0.0
        result |= asdict(self.peaks) | known
        if samples_s and not wrong:
            time_s = statistics.median(samples_s)
            result |= {"samples_s": samples_s, "time_s": time_s, "tokens_per_s": self.trial.tokens / time_s}
            if facts.flops:
                least_s = self.ceilings.least_s(facts.flops, moved_bytes)
                result |= {"flops_per_s": facts.flops / time_s, "roofline_share": least_s / time_s if least_s else None}
        return result


def _memory_pass(trial: Trial, expected_s: float | None) -> tuple[Peaks, Any]:
    """Both memory channels and an answer to check; in one call where a call is long."""

    def call() -> Any:
        return trial.call(0)

    if trial.device.type == "cuda":
        answer, peak = memory.device_peak(call, trial.device)
        return Peaks(peak, peak), answer
    if trial.device.type != "cpu":
        return Peaks(), call()
    memory.allocator_peak(lambda: None)  # tracing takes room of its own when it first starts
    if expected_s is not None and expected_s > clock.LONG_S:
        (answer, allocated), resident = memory.resident_peak(lambda: memory.allocator_peak(call))
        return Peaks(resident, allocated), answer
    return _separately(trial, call)


def _separately(trial: Trial, call: Callable[[], Any]) -> tuple[Peaks, Any]:
    answer, resident = memory.resident_peak(call)
    del answer  # the next call shall find as much room as this one
    trial.rewind()
    answer, allocated = memory.allocator_peak(call)
    return Peaks(resident, allocated), answer
