"""Assemble the report from pieces, in reading order: the answer, then the evidence, then the doubts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from harness.report import units
from harness.report.figures.length import Quantity, length_figure
from harness.report.figures.palette import Style, assign
from harness.report.figures.pareto import pareto_figure
from harness.report.headline import headlines
from harness.report.pieces import Chapter, Document, Group, Item, Note
from harness.report.sections import ReportSection, circumstances, sections_of
from harness.report.tables.answer import DEFINITIONS, answer_strip, answer_table
from harness.report.tables.components import component_groups
from harness.report.tables.growth import crossover_table, growth_tables, slope_table
from harness.report.tables.measures import cost_tables, reach_table, side_tables, value_table
from harness.report.tables.outcomes import (
    configuration,
    effort_table,
    machine_table,
    methods_table,
    missing_table,
    reproduction,
)
from harness.report.tables.quality import ACCURACY, CHECKS, HANDLED, glance_table, leak_table, metric_table
from harness.report.tables.relative import speed_table
from harness.results.disturbance import disturbance

if TYPE_CHECKING:
    from harness.common.rows import Row
    from harness.results.run_file import RunFacts
    from harness.stats.analysis import Analysis

Styles = Mapping[str, Style]
UNFINISHED = "The run has not finished: this report covers what has been measured so far."


def build_document(analysis: Analysis, facts: RunFacts) -> Document:
    """Build the whole report from what was measured and the run's facts."""
    rows, sections = analysis.rows, sections_of(analysis, facts)
    styles = _styles(sections)
    judged = [section for section in sections if section.judged and section.timed]
    chapters = [
        Chapter("answer", "The answer", DEFINITIONS if judged else "", _answer(judged, styles)),
        Chapter("cost", "Cost in numbers", "", _cost(sections, styles)),
        Chapter(
            "growth",
            "Cost against length",
            "",
            _per_section(sections, lambda place, section: _curves(place, section, styles)),
        ),
        Chapter("accuracy", "Accuracy", "", _accuracy(sections, styles)),
        Chapter("causality", "Causality violations", "", _plain([leak_table(sections, styles)])),
        Chapter(
            "roofline",
            "Share of the roofline",
            "",
            _per_section(sections, lambda place, section: _roofline(section, styles)),
        ),
        Chapter("components", "Where the time goes", "", component_groups(sections, styles)),
        Chapter("missing", "Not measured", "", _plain([missing_table(sections, styles)])),
        Chapter(
            "more", "Further metrics", "", _plain([metric_table(sections, name, styles) for name in _further(rows)])
        ),
        Chapter("provenance", "Provenance", "", _provenance(sections, rows, facts, styles)),
    ]
    return Document(
        title="Which attention, at which length?",
        subtitle=_subtitle(sections, facts),
        banner=" ".join(filter(None, ("" if facts.finished else UNFINISHED, disturbance(rows)))),
        headlines=headlines(sections),
        strip=answer_strip(judged[0], styles) if judged else None,
        chapters=[chapter for chapter in chapters if chapter.groups],
        styles=styles,
    )


def _styles(sections: Sequence[ReportSection]) -> dict[str, Style]:
    curves = [curve for section in sections for curve in section.curves]
    return assign(
        list(dict.fromkeys(curve.label for curve in curves)),
        exact=[curve.label for curve in curves if curve.facts.exact],
        controls=[curve.label for curve in curves if curve.control],
    )


def _per_section(
    sections: Sequence[ReportSection], items_of: Callable[[int, ReportSection], Sequence[Item | None]]
) -> list[Group]:
    """Return one group per section that has items: the first unfolded, the others folded under their titles."""
    groups = []
    for place, section in enumerate(sections):
        items = [item for item in items_of(place, section) if item is not None]
        if items:
            groups.append(Group(section.title, items, folded=bool(groups)))
    return groups


def _plain(items: Sequence[Item | None]) -> list[Group]:
    present = [item for item in items if item is not None]
    return [Group("", present)] if present else []


def _answer(sections: Sequence[ReportSection], styles: Styles) -> list[Group]:
    return _per_section(
        sections,
        lambda place, section: [
            answer_strip(section, styles) if place else None,
            answer_table(section, styles),
            crossover_table(section, styles),
        ],
    )


def _cost(sections: Sequence[ReportSection], styles: Styles) -> list[Group]:
    timed = [section for section in sections if section.timed]
    main = _per_section(
        timed,
        lambda _, section: [
            *cost_tables(section, styles),
            speed_table(section, styles),
            *growth_tables(section, styles),
            reach_table(section, styles),
        ],
    )
    side = _per_section(timed, lambda _, section: [*side_tables(section, styles), slope_table(section, styles)])
    name = "Output, state, preparation, comparisons, slopes"
    titles = [f"{name}: {group.title}" if group.title else name for group in side]
    return [*main, *(Group(title, group.items, folded=True) for title, group in zip(titles, side, strict=True))]


def _curves(place: int, section: ReportSection, styles: Styles) -> list[Item | None]:
    memory = next((name for name in ("peak_bytes", "allocator_bytes") if _has(section, name)), "peak_bytes")
    title = "Peak memory, resident," if memory == "peak_bytes" else "Peak memory, allocator,"
    quantities = (
        Quantity("time_s", "Time", units.duration),
        Quantity(memory, title, units.size, 2),
    )
    return [length_figure(section, quantity, styles, f"f{place}-{quantity.field}") for quantity in quantities]


def _has(section: ReportSection, name: str) -> bool:
    return any(curve.values(name) for curve in section.curves)


def _accuracy(sections: Sequence[ReportSection], styles: Styles) -> list[Group]:
    error = Quantity("error", "Error", units.percent, cost=False)
    figures = _per_section(
        sections,
        lambda place, section: [
            length_figure(section, error, styles, f"e{place}"),
            pareto_figure(section, styles, f"p{place}"),
        ],
    )
    full = _plain([metric_table(sections, name, styles) for name in ACCURACY])
    checks = _plain([metric_table(sections, name, styles) for name in CHECKS])
    return [
        *_plain([glance_table(sections, styles)]),
        *figures,
        *(Group("Error, error_v and attention recall at every length", group.items, folded=True) for group in full),
        *(Group("Agreement with each method’s own definition", group.items, folded=True) for group in checks),
    ]


def _roofline(section: ReportSection, styles: Styles) -> list[Item | None]:
    note = "Achieved share of what the machine’s measured ceilings allow at the kernel’s arithmetic intensity."
    return [
        value_table("Share of the roofline", section, "roofline_share", units.percent, styles, note=note),
        value_table("Floating-point operations per second", section, "flops_per_s", units.count, styles),
    ]


def _further(rows: Sequence[Row]) -> list[str]:
    return sorted({name for row in rows for name in row.metrics} - HANDLED)


def _provenance(sections: Sequence[ReportSection], rows: Sequence[Row], facts: RunFacts, styles: Styles) -> list[Group]:
    places = [f"{section.title or 'All'}: {circumstances(section)}." for section in sections]
    return [
        Group("", [reproduction(facts), methods_table(sections, styles), machine_table(facts, rows)]),
        *(Group("Measurement time", [table], folded=True) for table in [effort_table(sections)] if table),
        Group("Circumstances", [Note(place) for place in places], folded=len(places) > 1),
        Group("Configuration", [configuration(facts)], folded=True),
    ]


def _subtitle(sections: Sequence[ReportSection], facts: RunFacts) -> str:
    machine = facts.machine
    place = (
        machine.gpu
        or (f"{machine.cpu}, {units.cores(machine.cores)}" if machine.cores else machine.cpu)
        or machine.name
    )
    what = circumstances(sections[0]) if sections else "no rows"
    return f"{place} · {facts.started[:10]} · {what}"
