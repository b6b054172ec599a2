"""The findings of a comparison with a baseline for one series, each with a verdict and a reason."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from harness.common.text import LONGEST_PATH, shortened
from harness.results.baseline import COUNTED, RecordedSeries, counts_of, title

if TYPE_CHECKING:
    from harness.common.rows import Row, Status
    from harness.results.series import Series
    from harness.stats.changes import Change, RoundTimes

Verdict = Literal["pass", "fail", "ambiguous"]

COUNT_MARGIN = 1e-3
# A cell's time can have two modes (depending on memory placement), up to 1.7 apart; three rounds may all miss one.
SIZE_FACTOR = 2.0
SIZE_ROUNDS = 3
# Failures caused by the method, on any machine; memory and time limits depend on the machine.
BROKEN = ("wrong", "crash", "unsupported")
WORST_STATUS_FIRST: tuple[Status, ...] = (*BROKEN, "oom", "timeout", "skipped")
MORE_ROUNDS = "measure again with more rounds (--set rounds=...)"
MEASURE_ALL = "measure everything in the baseline, or record a smaller baseline in another file with --update"
MORE_TIME = "measure again with a larger budget.case_s"
MORE_MEMORY = "measure again with more free memory"
QUIET = "measure again on an idle machine"
LOOK = "check what changed in this method since the baseline; if it is intended, record it with --update"


@dataclass(frozen=True)
class Finding:
    """A verdict, the reason, and what to do next ("" after a pass)."""

    verdict: Verdict
    reason: str
    next_step: str = ""


def time_findings(
    changes: Sequence[Change], limits: Mapping[str, float], *, quiet: Sequence[Change] = (), partly_busy: str = ""
) -> list[Finding]:
    """Judge the changes of a series' times.

    A change fails if it is worse by more than the margin with a p-value within `limits`, passes if it is certainly
    below the margin, and is ambiguous otherwise. If the series was `partly_busy` (a description), a failure that the
    `quiet` cases alone do not show is ambiguous.
    """
    sure = {change.name for change in quiet if _is_worse(change, limits)}
    findings = []
    for change in changes:
        reason = _summary(change)
        if _is_worse(change, limits):
            failure = Finding("fail", f"{reason}: significantly worse, by more than {_margin(change)}", LOOK)
            findings += excused([failure], "" if change.name in sure else partly_busy)
        elif change.within:
            findings.append(Finding("pass", reason))
        else:
            findings.append(Finding("ambiguous", f"{reason}: may be more than {_margin(change)}", MORE_ROUNDS))
    return findings


def size_findings(
    old: RoundTimes, new: RoundTimes, *, quiet: RoundTimes | None = None, partly_busy: str = ""
) -> list[Finding]:
    """Report jumps at single lengths, which level and growth average away: every new round far above every old one.

    If the series was `partly_busy`, a jump that the `quiet` rounds alone do not show is ambiguous.
    """
    jumped = _jumps(old, new)
    sure = _jumps(old, quiet or {}).keys() if partly_busy else jumped.keys()
    unsure = jumped.keys() - sure
    return [*_jump_findings(jumped, jumped.keys() & sure), *excused(_jump_findings(jumped, unsure), partly_busy)]


def excused(findings: Iterable[Finding], busy: str) -> list[Finding]:
    """Turn failures into ambiguous findings if the machine was `busy`: other programs may have caused them."""
    return [
        Finding("ambiguous", f"{finding.reason}; but {busy[:1].lower()}{busy[1:]}", QUIET)
        if busy and finding.verdict == "fail"
        else finding
        for finding in findings
    ]


def lost_findings(record: RecordedSeries, series: Series) -> list[Finding]:
    """Report lengths in the baseline that this run did not try."""
    lost = record.lengths - {row.n for row in series.rows}
    return [_absent("", lost)] if lost else []


def reach_findings(
    record: RecordedSeries, series: Series, *, same_circumstances: bool, busy: str = ""
) -> list[Finding]:
    """Report lengths with times or counts in the baseline that now fail in some round or give no data."""
    findings, censored = [], series.censored()
    for n in sorted(record.lengths):
        rows = [row for row in series.rows if row.n == n]
        failed = [row for row in rows if row.status != "ok"]
        if failed and (n in censored or any(row.status != "skipped" for row in failed)):
            findings += _reach(rows, failed, no_data=n in censored, same_circumstances=same_circumstances, busy=busy)
        elif n in censored:
            findings.append(Finding("ambiguous", f"n={n} has no time: {censored[n][1]}", MORE_ROUNDS))
    return findings


def _reach(
    rows: Sequence[Row], failed: Sequence[Row], *, no_data: bool, same_circumstances: bool, busy: str
) -> list[Finding]:
    """Describe the rows of a length that `failed`; `no_data` means that the length gives no data at all."""
    worst = min(failed, key=lambda row: WORST_STATUS_FIRST.index(row.status))
    alike = sum(row.status == worst.status for row in failed)
    reason = f"n={worst.n} is in the baseline and is now {worst.status}"
    reason += f" in {alike} of {len(rows)} rounds" if not no_data else ""
    reason += f": {shortened(worst.reason, LONGEST_PATH) or 'no reason given'}"
    if worst.status in BROKEN:
        return [Finding("fail", reason, LOOK)]
    if not no_data or worst.status == "skipped" or not same_circumstances:
        return [Finding("ambiguous", reason, MORE_MEMORY if worst.status == "oom" else MORE_TIME)]
    return excused([Finding("fail", reason, LOOK)], busy if worst.status == "timeout" else "")


def missing_findings(record: RecordedSeries, series: Series, *, same_threads: bool) -> list[Finding]:
    """Report times and counts that the baseline has for a length and this run lacks though it measured that length."""
    measured = {row.n for row in series.rows} - series.censored().keys()
    held: dict[str, tuple[Collection[int], Collection[int]]] = {"times": (record.times_s, series.times())}
    for name in COUNTED:
        if name != "allocator_bytes" or same_threads:
            held[title(name)] = (record.counts.get(name, {}), series.quantity(name))
    lost = {what: (measured & set(old)) - set(new) for what, (old, new) in held.items()}
    return [_absent(f"{what} ", lengths) for what, lengths in lost.items() if lengths]


def count_findings(record: RecordedSeries, series: Series, *, same_threads: bool) -> list[Finding]:
    """Compare counts to within a thousandth; more is a failure, less is ambiguous (intended, or work that was lost)."""
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
    reason = f"{what}in the baseline but not in this run: n={', '.join(map(str, sorted(lengths)))}"
    return Finding("ambiguous", reason, MEASURE_ALL)


def _is_worse(change: Change, limits: Mapping[str, float]) -> bool:
    return change.matters and change.p_value <= limits.get(change.name, 0.0)


def _jumps(old: RoundTimes, new: RoundTimes) -> dict[int, float]:
    """Map n to the minimum slowdown, for the lengths that jumped."""
    return {
        n: min(new[n]) / max(old[n])
        for n in sorted(old.keys() & new.keys())
        if min(len(old[n]), len(new[n])) >= SIZE_ROUNDS and min(new[n]) > SIZE_FACTOR * max(old[n])
    }


def _jump_findings(jumped: Mapping[int, float], lengths: Collection[int]) -> list[Finding]:
    if not lengths:
        return []
    places = ", ".join(f"n={n} ({jumped[n]:.1f} times)" for n in sorted(lengths))
    return [Finding("fail", f"every round took more than {SIZE_FACTOR:g} times as long as before at {places}", LOOK)]


def _summary(change: Change) -> str:
    low, high = change.interval
    if change.name == "exponent":
        return f"exponent {change.estimate:+.3f} [{low:+.3f}, {high:+.3f}]"
    return f"time {change.estimate:+.1%} [{low:+.1%}, {high:+.1%}]"


def _margin(change: Change) -> str:
    return f"{change.margin:+.2f}" if change.name == "exponent" else f"{change.margin:+.0%}"


def _counts(old: dict[int, float], new: dict[int, float], places: Sequence[int]) -> str:
    n = places[-1]
    rest = f" and at {len(places) - 1} other lengths" if len(places) > 1 else ""
    return f"{old[n]:.6g} → {new[n]:.6g} at n={n}{rest}"
