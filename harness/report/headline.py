"""The answer in plain sentences: what to use up to which length, what the controls show, and what went wrong."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.report.faults import warnings
from harness.report.pieces import Headline
from harness.report.tables.answer import EXACT, LOOSEST, Pick, exact_time_s, fastest, tolerance_name
from harness.report.units import length, lengths, listed, rough, times

if TYPE_CHECKING:
    from harness.report.sections import Curve, ReportSection

_MOST_STRETCHES = 4


@dataclass(frozen=True)
class Stretch:
    """Consecutive lengths with one answer: any exact attention, one approximate method, or nothing."""

    label: str
    exact: bool
    picks: list[Pick]
    ns: list[int]


def headlines(sections: Sequence[ReportSection]) -> list[Headline]:
    """Return the sentences at the top of the report, most important first."""
    if not any(section.timed for section in sections):
        nothing = Headline("Nothing could be timed. The reasons are listed below.", "bad")
        return [nothing, *_closest(sections), *warnings(sections)]
    found = []
    timed = [section for section in sections if section.judged and section.timed]
    if timed:
        on = f" (on {timed[0].title})" if timed[0].title else ""
        found.append(Headline(f"{_capital(_advice(timed[0]))}{on}."))
        found += [*_nearest(timed[0]), *_control_verdict(timed[0]), *_limit(timed[0])]
    found += [Headline(f"On {section.title}: {_advice(section)}.", "other") for section in timed[1:]]
    return [*found, *_closest(sections), *warnings(sections)]


def _closest(sections: Sequence[ReportSection]) -> list[Headline]:
    """For sections that measured only accuracy: how close the best method and the best control come."""
    found = []
    for section in sections:
        curves = [curve for curve in section.curves if not curve.facts.exact and curve.values("error")]
        if section.judged and not section.timed and curves:
            n = max(n for curve in curves for n in curve.values("error"))
            place = f"On {section.title} at {length(n)}" if section.title else f"At {length(n)}"
            kinds = {"method": False, "control": True}
            clauses = [_best_at(curves, n, kind, control=control) for kind, control in kinds.items()]
            found.append(Headline(f"{place} {'; '.join(filter(None, clauses))}.", "other"))
    return found


def _best_at(curves: Sequence[Curve], n: int, kind: str, *, control: bool) -> str:
    able = [curve for curve in curves if curve.control is control and n in curve.values("error")]
    if not able:
        return ""
    best = min(able, key=lambda curve: curve.values("error")[n])
    per_value = best.values("error_v").get(n)
    beside = "" if per_value is None else f" (error_v {rough(per_value)})"
    return f"the closest {kind} is {best.label}, with an error of {rough(best.values('error')[n])}{beside}"


def _advice(section: ReportSection) -> str:
    answered = [stretch for stretch in _stretches(section) if stretch.picks]
    if not answered:
        return f"no method is exact or {tolerance_name(LOOSEST)} of exact attention at any length"
    if all(stretch.exact for stretch in answered):
        return _only_exact(section, answered)
    if len(answered) > _MOST_STRETCHES:
        last = answered[-1]
        changing = f"the fastest method {tolerance_name(LOOSEST)} of exact attention changes with length (see below)"
        return f"{changing}; at {length(last.ns[-1])} {_clause(last, section)}"
    ranges = [_range(stretch, section, first=stretch is answered[0]) for stretch in answered]
    return "; ".join(f"{span} {_clause(stretch, section)}" for span, stretch in zip(ranges, answered, strict=True))


def _only_exact(section: ReportSection, stretches: Sequence[Stretch]) -> str:
    picks = [pick for stretch in stretches for pick in stretch.picks]
    ns = [pick.n for pick in picks]
    span = f"at every length from {length(ns[0])} to {length(ns[-1])}" if len(ns) > 1 else f"at {length(ns[0])}"
    return f"use {_winners(picks)} {span}{_why_only_exact(section)}"


def _why_only_exact(section: ReportSection) -> str:
    others = [curve for curve in section.curves if not curve.control and not curve.facts.exact and curve.timings]
    if not others:
        return ""
    if not any(curve.values("error") for curve in others):
        return f"; the error of {listed([curve.label for curve in others])} was not measured"
    return f": nothing faster comes {tolerance_name(LOOSEST)} of exact attention"


def _nearest(section: ReportSection) -> list[Headline]:
    """If only exact methods are advised: the most accurate method that would be faster at the longest length."""
    picks = [pick for stretch in _stretches(section) for pick in stretch.picks]
    if not picks or not all(pick.curve.facts.exact for pick in picks):
        return []
    last = picks[-1]
    faster = [
        (curve.values("error")[last.n], last.time_s / curve.timings[last.n].time_s, curve.label)
        for curve in section.curves
        if not curve.control and last.n in curve.values("error") and last.n in curve.timings
    ]
    able = sorted((error, speedup, label) for error, speedup, label in faster if speedup > 1)
    if not able:
        return []
    error, speedup, label = able[0]
    return [
        Headline(
            f"{label} is {times(speedup)} faster at {length(last.n)}, but with an error of {rough(error)}.", "other"
        )
    ]


def _winners(picks: Sequence[Pick]) -> str:
    """Return the picks' names, most frequent first."""
    return listed([label for label, _ in Counter(pick.curve.label for pick in picks).most_common()], "or")


def _limit(section: ReportSection) -> list[Headline]:
    exact = [n for n in section.lengths if exact_time_s(section, n) is not None]
    if not exact or exact[-1] == section.lengths[-1]:
        return []
    return [Headline(f"No exact method finished beyond {length(exact[-1])}.", "other")]


def _stretches(section: ReportSection) -> list[Stretch]:
    stretches: list[Stretch] = []
    for n in section.lengths:
        pick = fastest(section, n, LOOSEST)
        exact = pick is not None and pick.curve.facts.exact
        label = "exact" if exact else pick.curve.label if pick else ""
        if not stretches or stretches[-1].label != label:
            stretches.append(Stretch(label, exact, [], []))
        stretches[-1].ns.append(n)
        stretches[-1].picks.extend([pick] if pick else [])
    return stretches


def _range(stretch: Stretch, section: ReportSection, *, first: bool) -> str:
    low, high = stretch.ns[0], stretch.ns[-1]
    if low == high:
        return f"at {length(low)}"
    if first and low == section.lengths[0]:
        return f"up to {length(high)}"
    if high == section.lengths[-1]:
        return f"from {length(low)}"
    return f"from {length(low)} to {length(high)}"


def _clause(stretch: Stretch, section: ReportSection) -> str:
    if stretch.exact:
        return f"use {_winners(stretch.picks)}"
    ratios = [pick.speedup for pick in stretch.picks if pick.speedup is not None]
    bound = "up to " if len(stretch.picks) > 1 else ""
    error = f"at {bound}{rough(max(pick.error for pick in stretch.picks if pick.error is not None))} error"
    if ratios:
        low, high = times(min(ratios)), times(max(ratios))
        return f"{stretch.label} is {high if low == high else f'{low} to {high}'} faster than exact attention {error}"
    has_exact = any(curve.facts.exact for curve in section.curves)
    return f"{stretch.label} is fastest {error}" + (" and no exact method finishes" if has_exact else "")


def _control_verdict(section: ReportSection) -> list[Headline]:
    """Say whether a control does as well as the approximate picks; if so, how keys are chosen makes no difference."""
    picks = [pick for stretch in _stretches(section) if not stretch.exact for pick in stretch.picks]
    controls = [curve for curve in section.curves if curve.control and curve.timings]
    if not picks or not controls:
        return []
    beaten: dict[str, list[int]] = {}
    for pick in picks:
        rival = fastest(section, pick.n, pick.error or EXACT, control=True)
        if rival is not None and rival.time_s <= pick.time_s:
            beaten.setdefault(rival.curve.label, []).append(pick.n)
    if beaten:
        rivals = listed([f"{label} at {lengths(ns)}" for label, ns in beaten.items()])
        return [
            Headline(
                f"A control is as fast and at least as accurate: {rivals}. The choice of keys has no benefit there.",
                "warn",
            )
        ]
    return [Headline("No control is as accurate in as little time.", "other")]


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]
