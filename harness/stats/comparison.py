"""Compare a run with a baseline: all findings of all series, with a shared error rate."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from harness.common.text import shortened
from harness.results.baseline import Baseline, RecordedSeries, portable_key, round_times_s
from harness.results.disturbance import BUSY, busy_cases, disturbance, is_busy, others_share
from harness.results.series import Series
from harness.stats.changes import Change, time_changes
from harness.stats.findings import (
    MEASURE_ALL,
    Finding,
    Verdict,
    count_findings,
    excused,
    lost_findings,
    missing_findings,
    reach_findings,
    size_findings,
    time_findings,
)

# One-sided rate of false "became worse" over all series of a run, separately for level and exponent.
ERROR_RATE = 0.025
WORST_FIRST: tuple[Verdict, ...] = ("fail", "ambiguous", "pass")


@dataclass(frozen=True)
class Judgement:
    """All changes and findings of one series; `changes` is empty if times cannot be compared."""

    series: Series
    changes: tuple[Change, ...]
    findings: tuple[Finding, ...]

    @property
    def verdict(self) -> Verdict:
        """The worst verdict among the findings."""
        return worst_verdict(finding.verdict for finding in self.findings)


@dataclass(frozen=True)
class _Pair:
    series: Series
    record: RecordedSeries | None
    why_no_times: str
    changes: tuple[Change, ...]


def worst_verdict(verdicts: Iterable[Verdict]) -> Verdict:
    """Return the worst verdict: fail, then ambiguous, then pass."""
    return min(verdicts, key=WORST_FIRST.index)


def compare(
    baseline: Baseline, series: Sequence[Series], machine: str, *, common_name: str = "", busy: str = ""
) -> list[Judgement]:
    """Judge every series of a run on `machine`, and every series of the baseline that the run lacks.

    Times are compared only on the baseline's machine; counts on any. If the baseline's machine is known only by its
    `common_name`, it cannot be told from similar machines and times are not compared. `busy` describes what disturbed
    the whole run; times that became worse then prove nothing and are ambiguous.
    """
    pairs = [_pair(one, baseline, machine, common_name) for one in series]
    limits = _holm_limits([change for pair in pairs for change in pair.changes])
    judged = [
        Judgement(pair.series, pair.changes, tuple(_findings(pair, limits, busy or _mostly_busy(pair.series))))
        for pair in pairs
    ]
    found = [pair.record for pair in pairs]
    absent = [
        (key, record) for key, record in baseline.series.items() if not any(record is matched for matched in found)
    ]
    return judged + [_judged_absent(key, record) for key, record in absent]


def _judged_absent(key: str, record: RecordedSeries) -> Judgement:
    reason = "in the baseline but not in this run"
    return Judgement(Series(key, record.case.label, record.case, []), (), (Finding("ambiguous", reason, MEASURE_ALL),))


def _mostly_busy(series: Series) -> str:
    """Return the warning for a series of which most timed cases were disturbed, though the run as a whole was not."""
    shares = others_share(series.rows)
    if sum(share > BUSY for share in shares) <= len(shares) / 2:
        return ""
    return disturbance(series.rows)


def _pair(series: Series, baseline: Baseline, machine: str, common_name: str) -> _Pair:
    record = _matching(series, baseline)
    why_no_times, theirs = "", shortened(baseline.machine)
    if record is None:
        return _Pair(series, None, why_no_times, ())
    if baseline.machine == common_name:
        why_no_times = f"the baseline does not identify its machine, {theirs}, well enough to compare"
    elif machine != baseline.machine:
        why_no_times = f"the baseline is from another machine, {theirs}"
    elif record.case.threads != series.case.threads:
        why_no_times = f"the baseline used {record.case.threads} threads, this run {series.case.threads}"
    changes = () if why_no_times else tuple(time_changes(record.times_s, round_times_s(series)))
    return _Pair(series, record, why_no_times, changes)


def _matching(series: Series, baseline: Baseline) -> RecordedSeries | None:
    if series.key in baseline.series:
        return baseline.series[series.key]
    portable = portable_key(series.case)
    return next((record for record in baseline.series.values() if portable_key(record.case) == portable), None)


def _findings(pair: _Pair, limits: Mapping[str, float], busy: str) -> list[Finding]:
    if pair.record is None:
        return [Finding("ambiguous", "not in the baseline", "record it with --update")]
    comparable = not pair.why_no_times
    same_threads = pair.record.case.threads == pair.series.case.threads
    findings = [
        *(_time_findings(pair.record, pair, limits, busy) if comparable else ()),
        *reach_findings(pair.record, pair.series, same_circumstances=comparable, busy=busy),
        *lost_findings(pair.record, pair.series),
        *missing_findings(pair.record, pair.series, same_threads=same_threads),
        *count_findings(pair.record, pair.series, same_threads=same_threads),
    ]
    if not findings:
        why = pair.why_no_times or "no length was measured in both"
        return [Finding("ambiguous", f"nothing to compare: {why}", "measure the cases of the baseline on its machine")]
    if not comparable:
        findings.append(Finding("pass", f"times not compared: {pair.why_no_times}"))
    return findings


def _time_findings(record: RecordedSeries, pair: _Pair, limits: Mapping[str, float], busy: str) -> list[Finding]:
    """Return the findings on times; in a partly disturbed series, the undisturbed cases are also judged separately."""
    old, new = record.times_s, round_times_s(pair.series)
    disturbed = "" if busy else busy_cases(pair.series.rows)
    if not disturbed:
        return excused([*time_findings(pair.changes, limits), *size_findings(old, new)], busy)
    reason = f"{disturbed}, and the other cases alone do not show it"
    quiet = round_times_s(replace(pair.series, rows=[row for row in pair.series.rows if not is_busy(row)]))
    return [
        *time_findings(pair.changes, limits, quiet=time_changes(old, quiet), partly_busy=reason),
        *size_findings(old, new, quiet=quiet, partly_busy=reason),
    ]


def _holm_limits(changes: Sequence[Change]) -> dict[str, float]:
    """Return, per kind of change, the p-value up to which Holm's procedure rejects "nothing became worse"."""
    limits: dict[str, float] = {}
    for name in {change.name for change in changes}:
        p_values = sorted(change.p_value for change in changes if change.name == name)
        limits[name] = 0.0
        for place, p_value in enumerate(p_values):
            bound = ERROR_RATE / (len(p_values) - place)
            if p_value > bound:
                break
            limits[name] = bound
    return limits
