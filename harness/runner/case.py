"""Measure one case in its child process: set up, measure memory, check, time, count.

The order matters. The first call is the memory pass, and the gate checks its answer. The second call uses the other set
of inputs and is checked too; if it takes more than a second, it is also the timed call. Shorter calls are then warmed
up and timed, and the last timed answer is checked as well. A wrong answer gets no time.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from harness.common.job import Job
from harness.common.rows import Case, Measurement
from harness.measure import gate, memory
from harness.measure import timer as clock
from harness.measure.cpu_load import Load, cores
from harness.measure.elapsed import Elapsed
from harness.measure.roofline import MeasureCeilings
from harness.subjects.base import CheckResult, Facts, Trial, Unsupported, subject_of
from harness.subjects.references import Store, UnwritableError

LOOKS, LOOK_S = 4, 0.8  # re-measure the ceilings this often, this long, before rejecting a time


@dataclass(frozen=True)
class Peaks:
    """Peak bytes of one call: resident and from the allocator. None if not measured."""

    peak_bytes: float | None = None
    allocator_bytes: float | None = None


@dataclass(frozen=True)
class MeasuredCase:
    """The measurement, and why what later rounds need could not be written ("" if it was)."""

    measurement: Measurement
    unwritable: str = ""


@dataclass(frozen=True)
class MeasureCase(Job[MeasuredCase]):
    """Measure one case in one round.

    `folder` holds the shared inputs. `memory_bytes` is the memory the case may use beyond its inputs. `expected_s` is
    the predicted time of a call, from shorter lengths. The ceilings are this machine's, 0 if unknown.
    """

    case: Case
    key: str
    round: int
    folder: Path
    memory_bytes: int | None
    expected_s: float | None
    ceilings: gate.Ceilings

    def run(self) -> MeasuredCase:
        case = self.case
        torch.set_num_threads(case.threads)
        torch.manual_seed(case.seed)
        memory.return_freed_memory()
        try:
            trial = subject_of(case.subject).setup(case, Store(self.folder), self.key)
        except Unsupported as reason:
            return MeasuredCase(Measurement(status="unsupported", reason=str(reason)))
        memory.limit(None)
        trial.warm()  # starts threads, whose stacks do not count as the case's memory
        memory.limit(self.memory_bytes)
        run = _Run(trial, self.ceilings, case)
        return run.first(self.expected_s) if self.round == 0 else run.later()


class _Run:
    """Takes one trial through the passes; stops at the first wrong answer."""

    def __init__(self, trial: Trial, ceilings: gate.Ceilings, case: Case) -> None:
        self.trial, self.ceilings, self.case = trial, ceilings, case
        self.metrics: dict[str, float] = {}
        self.peaks = Peaks()
        self.measured_s = self.others_s = 0.0

    def first(self, expected_s: float | None) -> MeasuredCase:
        """Run all passes and record what later rounds need."""
        # `_gated` must hold the only reference to the answer: it frees the answer before timing.
        measurement = self._gated(self._weighed(expected_s) if self.trial.timed else self._called(), thorough=True)
        if measurement.status == "ok":
            try:
                self.trial.keep()
            except UnwritableError as error:  # not a fault of the method
                return MeasuredCase(measurement, unwritable=str(error))
        return MeasuredCase(measurement)

    def later(self) -> MeasuredCase:
        """Measure time only; answers are compared with those of the first round."""
        memory.keep_freed_memory()
        return MeasuredCase(self._gated(self._called(), thorough=False))

    def _called(self) -> Any:
        with self._measuring():
            return self.trial.call(0)

    def _weighed(self, expected_s: float | None) -> Any:
        with self._measuring():
            self.peaks, answer = _memory_pass(self.trial, expected_s)
        return answer

    def _gated(self, answer: Any, *, thorough: bool) -> Measurement:
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
            wrong = wrong or ("" if samples_s else "no time was measured: the clock of this machine does not advance")
        with memory.unmeasured():
            facts = self.trial.facts(thorough=thorough)
        if self.trial.timed and not wrong:
            wrong = self._too_fast(statistics.median(samples_s), facts)
        return self._result(wrong, samples_s if self.trial.timed else [], facts)

    @contextmanager
    def _measuring(self) -> Iterator[None]:
        elapsed, load = Elapsed(), Load()
        yield
        self.measured_s += elapsed.seconds()
        self.others_s += load.others_s()

    def _check(self, variant: int, answer: Any) -> str:
        with memory.unmeasured():
            finding: CheckResult = self.trial.check(variant, answer)
        self.metrics |= finding.metrics
        return finding.wrong

    def _too_fast(self, time_s: float, facts: Facts) -> str:
        flops = facts.flops or 0.0
        if not gate.too_fast(time_s, flops, facts.moved_bytes, self.ceilings):
            return ""
        # The machine may have been busy when its ceilings were measured, so measure them again before deciding.
        for _ in range(LOOKS):
            again = MeasureCeilings(self.case.device, [self.case.dtype], self.case.threads, LOOK_S).run()
            self.ceilings = gate.Ceilings(
                max(self.ceilings.flops_per_s, again.flops_per_s[self.case.dtype]),
                max(self.ceilings.copy_bytes_per_s, again.copy_bytes_per_s),
            )
            if not gate.too_fast(time_s, flops, facts.moved_bytes, self.ceilings):
                break
        return gate.too_fast(time_s, flops, facts.moved_bytes, self.ceilings)

    def _result(self, wrong: str, samples_s: list[float], facts: Facts) -> Measurement:
        known = asdict(facts)
        moved_bytes = known.pop("moved_bytes")
        result: dict[str, Any] = {"status": "wrong" if wrong else "ok", "reason": wrong, "metrics": self.metrics}
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
        return Measurement(**result)


def _memory_pass(trial: Trial, expected_s: float | None) -> tuple[Peaks, Any]:
    """Measure both memory peaks and return them with an answer to check; long calls do both in one call."""

    def call() -> Any:
        return trial.call(0)

    if trial.device.type == "cuda":
        answer, peak = memory.device_peak(call, trial.device)
        return Peaks(peak, peak), answer
    if trial.device.type != "cpu":
        return Peaks(), call()
    memory.allocator_peak(lambda: None)  # the first use of tracing allocates memory of its own
    if expected_s is not None and expected_s > clock.LONG_S:
        (answer, allocated), resident = memory.resident_peak(lambda: memory.allocator_peak(call))
        return Peaks(resident, allocated), answer
    return _separately(trial, call)


def _separately(trial: Trial, call: Callable[[], Any]) -> tuple[Peaks, Any]:
    answer, resident = memory.resident_peak(call)
    del answer  # so that the next call finds the same free memory
    trial.rewind()
    answer, allocated = memory.allocator_peak(call)
    return Peaks(resident, allocated), answer
