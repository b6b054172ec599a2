"""Group rows into sections: everything measured under the same circumstances, so that its series can be compared."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from harness.common.metrics import METRICS
from harness.common.rows import Case, Row
from harness.report.units import length
from harness.results.run_file import ClassFacts, RunFacts

if TYPE_CHECKING:
    from harness.results.series import Series
    from harness.stats.analysis import Analysis
    from harness.stats.fit import Fit

# The harness's own attention subjects. Other subjects are reported but not judged.
JUDGED = ("attention", "accuracy")
# Fields that distinguish series within a section; all other fields of a case identify the section.
_OF_SERIES = {"backend", "label", "settings", "control", "n"}
_SAY_THEMSELVES = {"subject", "level", "mode", "inputs", "dtype", "device"}
_INPUTS = {"text": 0, "planted": 1, "gaussian": 2}


@dataclass(frozen=True)
class CellTime:
    """One cell's time: the median over rounds of each round's median.

    `low_s` and `high_s` are the fastest and slowest round, or the quartiles of the samples if there is only one round.
    """

    time_s: float
    low_s: float
    high_s: float
    rounds: int

    @property
    def spread(self) -> float:
        """Half the distance between `low_s` and `high_s`, relative to the median."""
        return (self.high_s - self.low_s) / 2 / self.time_s


class Curve:
    """One series over n, with the facts its class declares; medians and fits are computed once."""

    def __init__(self, series: Series, facts: ClassFacts, analysis: Analysis) -> None:
        self.series = series
        self.analysis = analysis
        self.facts = facts
        self.label = series.label
        self.control = series.case.control
        self._values: dict[str, dict[int, float]] = {}

    @cached_property
    def timings(self) -> dict[int, CellTime]:
        """Map n to the time of the cells with a right answer in every round."""
        return {n: _timing(rounds) for n, rounds in sorted(self.series.times().items())}

    @cached_property
    def censored(self) -> dict[int, tuple[str, str]]:
        """Map n to (status, reason) of the cells without data."""
        return self.series.censored()

    @property
    def rows(self) -> list[Row]:
        """Every row of the series, whatever its status."""
        return self.series.rows

    def values(self, name: str) -> dict[int, float]:
        """Map n to the median over rounds of a numeric row field, or to the worst round of a metric."""
        if name not in self._values:
            samples = sorted(self.series.quantity(name).items())
            summary = _worst(name)
            self._values[name] = {n: summary([value for values in rounds for value in values]) for n, rounds in samples}
        return self._values[name]

    def worst(self, name: str) -> dict[int, float]:
        """Map n to the worst value of a metric over all rows that have it, including rows with a wrong answer."""
        found: dict[int, list[float]] = {}
        for row in self.rows:
            if name in row.metrics:
                found.setdefault(row.n, []).append(row.metrics[name])
        return {n: _worst(name)(values) for n, values in sorted(found.items())}

    def fit(self, name: str) -> Fit | None:
        """Fit the growth of "time_s" or another numeric field with n; None with fewer than three positive sizes."""
        return self.analysis.fit(self.series, name)


@dataclass(frozen=True)
class ReportSection:
    """The curves measured under the same circumstances.

    `title` distinguishes it from the run's other sections ("text inputs, float32"); `short` does so in a table.
    """

    title: str
    short: str
    case: Case
    curves: Sequence[Curve]

    @cached_property
    def lengths(self) -> list[int]:
        """Every length at which any curve was to be measured."""
        return sorted({row.n for curve in self.curves for row in curve.rows})

    @property
    def timed(self) -> bool:
        """Whether any cell has a time."""
        return any(curve.timings for curve in self.curves)

    @property
    def judged(self) -> bool:
        """Whether its methods are compared as attentions."""
        return self.case.subject in JUDGED


def sections_of(analysis: Analysis, facts: RunFacts) -> list[ReportSection]:
    """Return the sections in reading order: attention first, text first, then those with the most times.

    Series are in the order of `class_facts`, controls last; the shuffled order of rows does not matter.
    """
    groups: dict[str, list[Series]] = {}
    for series in analysis.series:
        groups.setdefault(_circumstances(series.case), []).append(series)
    cases = [group[0].case for group in groups.values()]
    sections = []
    planned = {label: place for place, label in enumerate(facts.class_facts)}
    for case, group in zip(cases, groups.values(), strict=True):
        curves = [Curve(series, facts.class_facts.get(series.label, ClassFacts()), analysis) for series in group]
        curves.sort(key=lambda curve: (curve.control, _place(planned, curve.label)))
        varying = _varying(case, cases)
        title = ", ".join(f"{words} inputs" if name == "inputs" else words for name, words in varying.items())
        sections.append(ReportSection(title, " · ".join(varying.values()), case, curves))
    return sorted(sections, key=_rank)


def _circumstances(case: Case) -> str:
    return case.model_dump_json(exclude=_OF_SERIES)


def _place(places: Mapping[str, int], name: str) -> tuple[int, str]:
    """Return a sort key by `places`; names that are not in it come last, by name."""
    return (places.get(name, len(places)), name)


def _rank(section: ReportSection) -> tuple[object, ...]:
    case = section.case
    kind = (not section.judged, not section.timed, case.level != "kernel", case.mode != "forward")
    cells = sum(len(curve.timings) for curve in section.curves)
    return (*kind, _place(_INPUTS, case.inputs), -cells, section.title)


def _varying(case: Case, cases: Sequence[Case]) -> dict[str, str]:
    """Map field to words for the circumstances that differ between sections.

    A judged subject's name is omitted if the rest is enough to tell the sections apart.
    """
    names = [name for name in Case.model_fields if name not in _OF_SERIES]
    varying = [name for name in names if len({getattr(other, name) for other in cases}) > 1]
    rest = [name for name in varying if name != "subject"]
    alike = [other for other in cases if all(getattr(other, name) == getattr(case, name) for name in rest)]
    needed = varying if len(alike) > 1 or case.subject not in JUDGED else rest
    return {name: _words(name, case) for name in needed}


def _words(name: str, case: Case) -> str:
    value = getattr(case, name)
    if name == "causal":
        return "causal" if value else "not causal"
    return str(value) if name in _SAY_THEMSELVES else f"{name.replace('_', ' ')} {value}"


def circumstances(section: ReportSection) -> str:
    """Describe all circumstances of a section in one line."""
    case = section.case
    heads = f"{case.heads} heads" + (f" on {case.kv_heads}" if case.kv_heads != case.heads else "")
    dims = f"dimension {case.head_dim}" + (f" and {case.value_dim}" if case.value_dim != case.head_dim else "")
    causal = "causal" if case.causal else "not causal"
    shape = f"batch {case.batch}, {heads}, {dims}"
    place = f"{case.dtype} on {case.device}, {case.threads} thread{'s' if case.threads != 1 else ''}"
    parts = [f"{case.inputs} inputs", f"{case.level} {case.mode}", causal, shape, place, f"seed {case.seed}"]
    if case.subject != JUDGED[0]:
        parts.insert(0, case.subject)
    span = f"{length(section.lengths[0])} to {length(section.lengths[-1])}" if section.lengths else "no length"
    return "; ".join([*parts, span])


def _timing(rounds: Sequence[Sequence[float]]) -> CellTime:
    medians = [statistics.median(samples) for samples in rounds]
    ends = medians if len(rounds) > 1 or len(rounds[0]) == 1 else statistics.quantiles(rounds[0], method="inclusive")
    return CellTime(statistics.median(medians), min(ends), max(ends), len(medians))


def _worst(name: str) -> Callable[[Sequence[float]], float]:
    metric = METRICS.get(name)
    if metric is None or metric.better == "neither":
        return statistics.median
    return max if metric.better == "lower" else min
