"""Tables of what was not measured and why, what ran, and where: all that is needed to doubt or repeat a number."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from harness.config.yaml_source import dump
from harness.report import units
from harness.report.pieces import NOTHING, Cell, Column, Note, Table
from harness.report.tables.measures import name_cell
from harness.results.disturbance import others_share
from harness.results.series import impossible_time

if TYPE_CHECKING:
    from harness.common.rows import Row
    from harness.report.figures.palette import Style
    from harness.report.sections import Curve, ReportSection
    from harness.results.run_file import RunFacts

_BAD = {"wrong", "crash"}


def missing_table(sections: Sequence[ReportSection], styles: Mapping[str, Style]) -> Table | None:
    """Table of every case that failed, by series, status and reason."""
    several = len(sections) > 1
    rows = []
    for section in sections:
        for curve in section.curves:
            for (status, reason), words in _failures(curve).items():
                place = [Cell(section.short, sort=section.short)] if several else []
                cells = [
                    Cell(status, sort=status, tone="bad" if status in _BAD else ""),
                    Cell(words),
                    Cell(reason, sort=reason),
                ]
                rows.append([name_cell(curve, styles), *place, *cells])
    titles = ["method", *(["on"] if several else []), "status", "at", "why"]
    return Table("Cases without a time", [Column(title, numeric=False) for title in titles], rows) if rows else None


def _failures(curve: Curve) -> dict[tuple[str, str], str]:
    """Map (status, reason) to the lengths concerned, with the number of rounds if not all of them failed."""
    rounds = Counter(row.n for row in curve.rows)
    failed: dict[tuple[str, str], Counter[int]] = {}
    for row in curve.rows:
        if reason := impossible_time(row):
            failed.setdefault((row.status, reason), Counter())[row.n] += 1
        elif row.status != "ok":
            failed.setdefault((row.status, row.reason), Counter())[row.n] += 1
    return {
        why: ", ".join(
            units.length(n) + (f" ({count} of {rounds[n]} rounds)" if count < rounds[n] else "")
            for n, count in sorted(counts.items())
        )
        for why, counts in failed.items()
    }


def effort_table(sections: Sequence[ReportSection]) -> Table | None:
    """Table of the time that measuring took, per length: seconds in total, and outside the time and memory passes."""
    rows_of: dict[int, list[tuple[float, float]]] = {}
    for row in (row for section in sections for curve in section.curves for row in curve.rows):
        if row.wall_s is not None and row.measured_s is not None:
            rows_of.setdefault(row.n, []).append((row.wall_s, row.wall_s - row.measured_s))
    rows = [_effort_cells(n, taken) for n, taken in sorted(rows_of.items())]
    columns = [Column(title) for title in ("tokens", "cases", "total", "outside the passes, median", "largest")]
    note = "Outside its passes, a case starts a process, maps inputs, prepares, checks answers and counts comparisons."
    return Table("Measurement time", columns, rows, note=note) if rows else None


def _effort_cells(n: int, taken: Sequence[tuple[float, float]]) -> list[Cell]:
    whole, beside = (list(column) for column in zip(*taken, strict=True))
    durations = (sum(whole), statistics.median(beside), max(beside))
    return [
        Cell(units.length(n), sort=n),
        Cell(str(len(taken)), sort=len(taken)),
        *(Cell(units.duration(value), sort=value) for value in durations),
    ]


def methods_table(sections: Sequence[ReportSection], styles: Mapping[str, Style]) -> Table:
    """Table of every series: what it is, its settings, and which kernels ran."""
    curves: dict[str, list[Curve]] = {}
    for curve in (curve for section in sections for curve in section.curves):
        curves.setdefault(curve.label, []).append(curve)
    rows = [_method_cells(group, styles) for group in curves.values()]
    titles = ("method", "backend", "settings", "approximates", "causality", "kernel used", "paper")
    return Table("Methods", [Column(title, numeric=False) for title in titles], rows)


def _method_cells(group: Sequence[Curve], styles: Mapping[str, Style]) -> list[Cell]:
    curve, case = group[0], group[0].series.case
    settings = ", ".join(f"{name}={value}" for name, value in case.settings.items())
    kernels = ", ".join(sorted({row.kernel for curve in group for row in curve.rows if row.kernel}))
    target = curve.facts.approximates
    paper = curve.facts.paper
    href = paper if paper.startswith(("https://", "http://")) else ""
    texts = [case.backend, settings, f"is {target}" if curve.facts.exact else target, curve.facts.causality, kernels]
    cells = [Cell(text, sort=text) if text else NOTHING for text in texts]
    return [name_cell(curve, styles), *cells, Cell(paper, sort=paper, href=href) if paper else NOTHING]


def machine_table(facts: RunFacts, rows: Sequence[Row]) -> Table:
    """Table of the machine, dates and versions, and how much CPU time other programs took."""
    machine, shares = facts.machine, others_share(rows)
    ceilings = [f"{units.count(rate)}FLOP/s {dtype}" for dtype, rate in facts.ceilings.flops_per_s.items()]
    if facts.ceilings.copy_bytes_per_s:
        ceilings.append(f"{units.size(facts.ceilings.copy_bytes_per_s)}/s copied")
    middle, most = (statistics.median(shares), max(shares)) if shares else (0.0, 0.0)
    others = f"{units.percent(middle)} of CPU time in the median timed case, at most {units.percent(most)}"
    entries = {
        "run": facts.run,
        "started": facts.started,
        "finished": facts.finished or "not finished",
        "commit": (facts.commit or "unknown") + (" with uncommitted changes" if facts.dirty else ""),
        "machine": machine.name,
        "processor": f"{machine.cpu}, {units.cores(machine.cores)}" if machine.cores else machine.cpu,
        "memory": units.size(machine.memory_bytes) if machine.memory_bytes else "",
        "accelerator": machine.gpu or "none",
        "system": machine.os,
        "measured ceilings": ", ".join(ceilings),
        "other programs": others if shares else "",
        **facts.versions,
    }
    lines = [[Cell(name, sort=name), Cell(value, sort=value)] for name, value in entries.items() if value]
    return Table("Machine and versions", [Column("what", numeric=False), Column("value", numeric=False)], lines)


def configuration(facts: RunFacts) -> Note:
    """The resolved configuration as YAML."""
    return Note("The resolved configuration.", code=dump(facts.config))


def reproduction(facts: RunFacts) -> Note:
    """The command that repeats the whole measurement."""
    commit = f" at commit {facts.commit}" if facts.commit else ""
    return Note(f"The command to repeat this measurement{commit}:", code=facts.command or "(not recorded)")
