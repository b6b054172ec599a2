"""What a comparison with a baseline finds in one series, each finding with a verdict and its reason in words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from harness.baseline import COUNTED, Record, counts_of
from harness.changes import Change, RoundTimes
from harness.samples import Series

Verdict = Literal["pass", "fail", "ambiguous"]

COUNT_MARGIN = 1e-3
# A cell's time can have two modes (where memory came to lie), recorded up to 1.7 apart; three rounds may all miss one.
SIZE_FACTOR = 2.0
SIZE_ROUNDS = 3
# Losing a length to these is the method's doing on any machine; memory and time limits are the machine's.
BROKEN = ("wrong", "crash", "unsupported")
MORE_ROUNDS = "measure again with more rounds (--set rounds=...)"
MEASURE_ALL = "measure all that the baseline holds, or record a baseline of less in another file with --update"
QUIET = "measure again while nothing else runs"
LOOK = "look at what changed in this method since the baseline; if it is meant, record it with --update"


@dataclass(frozen=True)
class Finding:
    """One verdict, why, and what to do next (nothing after a pass)."""

    verdict: Verdict
    reason: str
    next_step: str = ""


def time_findings(changes: Sequence[Change], limits: Mapping[str, float]) -> list[Finding]:
    """Worse up to the p-value in `limits` and by more than the margin fails, surely less passes, else who knows."""
    findings = []
    for change in changes:
        words = _words(change)
        if change.matters and change.p_value <= limits[change.name]:
            findings.append(Finding("fail", f"{words}: surely worse, by more than {_margin(change)}", LOOK))
        elif change.within:
            findings.append(Finding("pass", words))
        else:
            findings.append(Finding("ambiguous", f"{words}: may be more than {_margin(change)}", MORE_ROUNDS))
    return findings


def size_findings(old: RoundTimes, new: RoundTimes) -> list[Finding]:
    """A jump at single lengths, which growth and level average away: every new round far above every old one."""
    jumped = {
        n: min(new[n]) / max(old[n])
        for n in sorted(old.keys() & new.keys())
        if min(len(old[n]), len(new[n])) >= SIZE_ROUNDS and min(new[n]) > SIZE_FACTOR * max(old[n])
    }
    if not jumped:
        return []
    where = ", ".join(f"n={n} ({ratio:.1f} times)" for n, ratio in jumped.items())
    return [Finding("fail", f"every round more than {SIZE_FACTOR:g} times as slow as before at {where}", LOOK)]


def excused(findings: Iterable[Finding], busy: str) -> list[Finding]:
    """Where the machine was busy, in words, a time that became worse is no failure: it may be the others' doing."""
    return [
        Finding("ambiguous", f"{finding.reason}; but {busy[:1].lower()}{busy[1:]}", QUIET)
        if busy and finding.verdict == "fail"
        else finding
        for finding in findings
    ]


def lost_findings(record: Record, series: Series) -> list[Finding]:
    """Lengths that the baseline holds and this run did not try: nobody knows whether they became worse."""
    held = set(record.times_s).union(*record.counts.values())
    lost = sorted(held - {row.n for row in series.rows})
    if not lost:
        return []
    words = f"in the baseline but not in this run: n={', '.join(map(str, lost))}"
    return [Finding("ambiguous", words, MEASURE_ALL)]


def reach_findings(record: Record, series: Series, *, same_circumstances: bool, busy: str = "") -> list[Finding]:
    """Lengths that had a time, were tried and now have none."""
    findings = []
    for n, (status, reason) in sorted(series.censored().items()):
        if n not in record.times_s or not (same_circumstances or status in BROKEN):
            continue
        words = f"n={n} had a time and is now {status}: {reason or 'no reason given'}"
        if status == "skipped":
            findings.append(Finding("ambiguous", words, "measure again with a larger budget.case_s"))
        else:
            findings += excused([Finding("fail", words, LOOK)], busy if status == "timeout" else "")
    return findings


def count_findings(record: Record, series: Series, *, same_threads: bool) -> list[Finding]:
    """Counts agree to a thousandth or do not; more is a failure, less may be meant or may be lost work."""
    findings = []
    for name in COUNTED:
        old, new = record.counts.get(name, {}), counts_of(series, name)
        shared = sorted(old.keys() & new.keys())
        if not shared or (name == "allocator_bytes" and not same_threads):
            continue
        more = [n for n in shared if new[n] > old[n] * (1 + COUNT_MARGIN)]
        less = [n for n in shared if new[n] < old[n] * (1 - COUNT_MARGIN)]
        if more:
            findings.append(Finding("fail", f"more {_title(name)} than before: {_counts(old, new, more)}", LOOK))
        elif less:
            findings.append(Finding("ambiguous", f"fewer {_title(name)} than before: {_counts(old, new, less)}", LOOK))
        else:
            findings.append(Finding("pass", f"{_title(name)} unchanged at {len(shared)} lengths"))
    return findings


def _words(change: Change) -> str:
    low, high = change.interval
    if change.name == "exponent":
        return f"exponent {change.estimate:+.3f} [{low:+.3f}, {high:+.3f}]"
    return f"time {change.estimate:+.1%} [{low:+.1%}, {high:+.1%}]"


def _margin(change: Change) -> str:
    return f"{change.margin:+.2f}" if change.name == "exponent" else f"{change.margin:+.0%}"


def _title(name: str) -> str:
    return {"allocator_bytes": "allocator bytes", "flops": "FLOPs"}.get(name, name)


def _counts(old: dict[int, float], new: dict[int, float], where: Sequence[int]) -> str:
    n = where[-1]
    rest = f" and at {len(where) - 1} other lengths" if len(where) > 1 else ""
    return f"{old[n]:.6g} → {new[n]:.6g} at n={n}{rest}"
