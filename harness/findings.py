"""What a comparison with a baseline finds in one series, each finding with a verdict and its reason in words."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from harness.baseline import COUNTED, Record, counts_of, title
from harness.changes import Change, RoundTimes
from harness.config_source import LONGEST_PATH, shortened
from harness.rows import Row, Status
from harness.samples import Series

Verdict = Literal["pass", "fail", "ambiguous"]

COUNT_MARGIN = 1e-3
# A cell's time can have two modes (where memory came to lie), recorded up to 1.7 apart; three rounds may all miss one.
SIZE_FACTOR = 2.0
SIZE_ROUNDS = 3
# Losing a length to these is the method's doing on any machine; memory and time limits are the machine's.
BROKEN = ("wrong", "crash", "unsupported")
GRAVEST_STATUS_FIRST: tuple[Status, ...] = (*BROKEN, "oom", "timeout", "skipped")
MORE_ROUNDS = "measure again with more rounds (--set rounds=...)"
MEASURE_ALL = "measure all that the baseline holds, or record a baseline of less in another file with --update"
MORE_TIME = "measure again with a larger budget.case_s"
MORE_MEMORY = "measure again where more memory is free"
QUIET = "measure again while nothing else runs"
LOOK = "look at what changed in this method since the baseline; if it is meant, record it with --update"


@dataclass(frozen=True)
class Finding:
    """One verdict, why, and what to do next (nothing after a pass)."""

    verdict: Verdict
    reason: str
    next_step: str = ""


def time_findings(
    changes: Sequence[Change], limits: Mapping[str, float], *, quiet: Sequence[Change] = (), partly_busy: str = ""
) -> list[Finding]:
    """Worse up to the p-value in `limits` and by more than the margin fails, surely less passes, else who knows.

    Where a series was `partly_busy`, in words, what the `quiet` cases alone do not show as well is no failure.
    """
    sure = {change.name for change in quiet if _is_worse(change, limits)}
    findings = []
    for change in changes:
        words = _words(change)
        if _is_worse(change, limits):
            failure = Finding("fail", f"{words}: surely worse, by more than {_margin(change)}", LOOK)
            findings += excused([failure], "" if change.name in sure else partly_busy)
        elif change.within:
            findings.append(Finding("pass", words))
        else:
            findings.append(Finding("ambiguous", f"{words}: may be more than {_margin(change)}", MORE_ROUNDS))
    return findings


def size_findings(
    old: RoundTimes, new: RoundTimes, *, quiet: RoundTimes | None = None, partly_busy: str = ""
) -> list[Finding]:
    """A jump at single lengths, which growth and level average away: every new round far above every old one.

    Where a series was `partly_busy`, a jump that the `quiet` rounds alone do not show as well is no failure.
    """
    jumped = _jumps(old, new)
    sure = _jumps(old, quiet or {}).keys() if partly_busy else jumped.keys()
    unsure = jumped.keys() - sure
    return [*_jump_findings(jumped, jumped.keys() & sure), *excused(_jump_findings(jumped, unsure), partly_busy)]


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
    lost = record.lengths - {row.n for row in series.rows}
    return [_absent("", lost)] if lost else []


def reach_findings(record: Record, series: Series, *, same_circumstances: bool, busy: str = "") -> list[Finding]:
    """Lengths that the baseline holds, times or counts, and that now fail in some round or give nothing."""
    findings, censored = [], series.censored()
    for n in sorted(record.lengths):
        rows = [row for row in series.rows if row.n == n]
        failed = [row for row in rows if row.status != "ok"]
        if failed and (n in censored or any(row.status != "skipped" for row in failed)):
            findings += _reach(rows, failed, whole=n in censored, same_circumstances=same_circumstances, busy=busy)
        elif n in censored:
            findings.append(Finding("ambiguous", f"n={n} has no time: {censored[n][1]}", MORE_ROUNDS))
    return findings


def _reach(
    rows: Sequence[Row], failed: Sequence[Row], *, whole: bool, same_circumstances: bool, busy: str
) -> list[Finding]:
    """What to say of the rows of a length that `failed`; it gives no data at all if that is the `whole` of it."""
    worst = min(failed, key=lambda row: GRAVEST_STATUS_FIRST.index(row.status))
    alike = sum(row.status == worst.status for row in failed)
    words = f"n={worst.n} is in the baseline and is now {worst.status}"
    words += f" in {alike} of {len(rows)} rounds" if not whole else ""
    words += f": {shortened(worst.reason, LONGEST_PATH) or 'no reason given'}"
    if worst.status in BROKEN:
        return [Finding("fail", words, LOOK)]
    if not whole or worst.status == "skipped" or not same_circumstances:
        return [Finding("ambiguous", words, MORE_MEMORY if worst.status == "oom" else MORE_TIME)]
    return excused([Finding("fail", words, LOOK)], busy if worst.status == "timeout" else "")


def missing_findings(record: Record, series: Series, *, same_threads: bool) -> list[Finding]:
    """Times and counts that the baseline holds of a length, and that are lacking where this run measured it."""
    measured = {row.n for row in series.rows} - series.censored().keys()
    held: dict[str, tuple[Collection[int], Collection[int]]] = {"times": (record.times_s, series.times())}
    for name in COUNTED:
        if name != "allocator_bytes" or same_threads:
            held[title(name)] = (record.counts.get(name, {}), series.quantity(name))
    lost = {what: (measured & set(old)) - set(new) for what, (old, new) in held.items()}
    return [_absent(f"{what} ", lengths) for what, lengths in lost.items() if lengths]


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
            findings.append(Finding("fail", f"more {title(name)} than before: {_counts(old, new, more)}", LOOK))
        elif less:
            findings.append(Finding("ambiguous", f"fewer {title(name)} than before: {_counts(old, new, less)}", LOOK))
        else:
            findings.append(Finding("pass", f"{title(name)} unchanged at {len(shared)} lengths"))
    return findings


def _absent(what: str, lengths: Iterable[int]) -> Finding:
    words = f"{what}in the baseline but not in this run: n={', '.join(map(str, sorted(lengths)))}"
    return Finding("ambiguous", words, MEASURE_ALL)


def _is_worse(change: Change, limits: Mapping[str, float]) -> bool:
    return change.matters and change.p_value <= limits.get(change.name, 0.0)


def _jumps(old: RoundTimes, new: RoundTimes) -> dict[int, float]:
    """n -> how many times as slow at least, of the lengths that jumped."""
    return {
        n: min(new[n]) / max(old[n])
        for n in sorted(old.keys() & new.keys())
        if min(len(old[n]), len(new[n])) >= SIZE_ROUNDS and min(new[n]) > SIZE_FACTOR * max(old[n])
    }


def _jump_findings(jumped: Mapping[int, float], lengths: Collection[int]) -> list[Finding]:
    if not lengths:
        return []
    where = ", ".join(f"n={n} ({jumped[n]:.1f} times)" for n in sorted(lengths))
    return [Finding("fail", f"every round more than {SIZE_FACTOR:g} times as slow as before at {where}", LOOK)]


def _words(change: Change) -> str:
    low, high = change.interval
    if change.name == "exponent":
        return f"exponent {change.estimate:+.3f} [{low:+.3f}, {high:+.3f}]"
    return f"time {change.estimate:+.1%} [{low:+.1%}, {high:+.1%}]"


def _margin(change: Change) -> str:
    return f"{change.margin:+.2f}" if change.name == "exponent" else f"{change.margin:+.0%}"


def _counts(old: dict[int, float], new: dict[int, float], where: Sequence[int]) -> str:
    n = where[-1]
    rest = f" and at {len(where) - 1} other lengths" if len(where) > 1 else ""
    return f"{old[n]:.6g} → {new[n]:.6g} at n={n}{rest}"
