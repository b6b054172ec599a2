from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING
from xml.etree import ElementTree

import pytest

from harness.report import units
from harness.report.figures.labels import spread_out
from harness.report.figures.length import Quantity, bounds_of, fit_to_draw, length_figure, points_of
from harness.report.figures.palette import COLOURS, assign, stand_in
from harness.report.figures.pareto import pareto_figure
from harness.report.sections import ReportSection, sections_of
from harness.results.run_file import RunFacts
from harness.stats.analysis import Analysis
from tests.harness.report_fixture import BITS, FLASH, MADE, VANILLA, Made, made_facts, made_rows

if TYPE_CHECKING:
    from harness.common.rows import Row
    from harness.report.pieces import Figure

SIZES = tuple(2**power for power in range(9, 17))
TIME = Quantity("time_s", "Time", units.duration)
ERROR = Quantity("error", "Error", units.percent, cost=False)


def section_of(rows: Sequence[Row], made: Sequence[Made] = MADE) -> ReportSection:
    return sections_of(Analysis(rows), RunFacts.model_validate(made_facts(made)))[0]


def drawn(section: ReportSection, quantity: Quantity = TIME, name: str = "f") -> Figure:
    labels = [curve.label for curve in section.curves]
    figure = length_figure(section, quantity, assign(labels, ["flash"], ["window"]), name)
    assert figure is not None
    return figure


def texts(svg: str) -> list[str]:
    return [
        "".join(element.itertext()) for element in ElementTree.fromstring(svg).iter() if element.tag.endswith("text")
    ]


def test_every_series_is_named_at_its_line_or_in_the_legend() -> None:
    many = [Made(f"method_{place}", 1.0, 1e-4, 1e-3 * (1 + place)) for place in range(14)]
    figure = drawn(section_of(made_rows(many, lengths=SIZES, rounds=1), many))
    assert all(any(text.startswith(made.label) for text in texts(figure.wide)) for made in many)
    assert list(figure.legend) == [made.label for made in many]


def test_no_two_series_look_the_same() -> None:
    labels = [f"method_{place}" for place in range(16)]
    styles = assign(labels, exact=labels[:3], controls=labels[12:])
    looks = {(style.colour, style.line, style.marker) for style in styles.values()}
    assert len(looks) == len(labels)


def test_exact_methods_and_controls_are_told_from_approximations_by_colour() -> None:
    styles = assign(["e", "a", "c"], exact=["e"], controls=["c"])
    assert [styles[label].colour.rstrip("0123456789") for label in "eac"] == ["exact", "hue", "control"]
    assert (styles["c"].line, styles["a"].line) == ("dashed", "solid")


def test_figures_take_their_colours_from_the_page() -> None:
    figure = drawn(section_of(made_rows((FLASH, BITS), lengths=SIZES)))
    for svg in (figure.wide, figure.narrow):
        assert not any(stand_in(colour) in svg for colour in COLOURS)
        assert "var(--exact0)" in svg
        assert "var(--hue0)" in svg
        assert "#000000" not in svg


def test_two_figures_of_one_page_share_no_id() -> None:
    section = section_of(made_rows((FLASH, BITS), lengths=SIZES))
    figures = [drawn(section, name=name) for name in ("a", "b")]
    drawings = [svg for figure in figures for svg in (figure.wide, figure.narrow)]
    ids = [element.get("id") for svg in drawings for element in ElementTree.fromstring(svg).iter() if element.get("id")]
    assert ids
    assert len(ids) == len(set(ids))


def test_a_label_is_text_and_neither_markup_nor_mathematics() -> None:
    label = '$x^2$ <b> & id="a" url(#b)'
    hostile = Made(label, 1.0, 1e-4, 1e-3)
    figure = drawn(section_of(made_rows((hostile,), lengths=SIZES), (hostile,)))
    assert any(text.startswith(label) for text in texts(figure.wide))


@pytest.mark.parametrize("why", ["timeout", "oom", "skipped"])
def test_a_cell_that_did_not_finish_is_a_bound_by_the_last_measurement(why: str) -> None:
    stopped = Made("stopped", 1.0, 1e-4, 1e-3, longest=SIZES[-3], why=(why, "because"))
    curve = section_of(made_rows((stopped,), lengths=SIZES), (stopped,)).curves[0]
    last = curve.timings[SIZES[-3]].time_s
    assert bounds_of(curve, TIME) == {SIZES[-2]: last, SIZES[-1]: last}


@pytest.mark.parametrize("why", ["crash", "wrong", "unsupported"])
def test_a_cell_that_says_nothing_about_cost_is_no_bound(why: str) -> None:
    stopped = Made("stopped", 1.0, 1e-4, 1e-3, longest=SIZES[-3], why=(why, "because"))
    assert bounds_of(section_of(made_rows((stopped,), lengths=SIZES), (stopped,)).curves[0], TIME) == {}


def test_bounds_are_explained_only_where_there_are_any() -> None:
    assert "Arrows" in drawn(section_of(made_rows((VANILLA, FLASH), lengths=SIZES))).note
    assert "Arrows" not in drawn(section_of(made_rows((FLASH,), lengths=SIZES[:4]))).note


def test_errors_of_rounding_are_not_drawn() -> None:
    section = section_of(made_rows((FLASH, BITS), lengths=SIZES))
    assert list(drawn(section, ERROR).legend) == ["bit_sampling"]


def test_a_tiny_error_does_not_stretch_the_axis() -> None:
    tiny = Made("tiny", 1.0, 1e-4, 1e-3, errors={"text": 1e-9})
    curve = section_of(made_rows((tiny,), lengths=SIZES), (tiny,)).curves[0]
    assert set(points_of(curve, ERROR).values()) == {1e-3}


def test_a_fit_that_misses_its_points_is_not_drawn() -> None:
    rows = [
        row.model_copy(update={"samples_s": [row.n**2 * (1e-6 if row.n in SIZES[::2] else 1e-8)]})
        for row in made_rows((FLASH,), lengths=SIZES)
    ]
    assert fit_to_draw(section_of(made_rows((FLASH,), lengths=SIZES)).curves[0], TIME) is not None
    section = section_of(rows)
    assert fit_to_draw(section.curves[0], TIME) is None
    assert "flash" in texts(drawn(section).wide)


def test_nothing_measured_gives_no_figure() -> None:
    section = section_of(made_rows((FLASH,), lengths=SIZES), (FLASH,))
    assert length_figure(section, Quantity("state_bytes", "State", units.size), {}, "f") is None
    assert pareto_figure(section, {}, "p") is None


def test_accuracy_is_compared_where_an_exact_method_still_runs() -> None:
    section = section_of(made_rows((VANILLA, BITS), lengths=SIZES))
    figure = pareto_figure(section, assign(["vanilla", "bit_sampling"], ["vanilla"], []), "p")
    assert figure is not None
    assert "n = 16K" in texts(figure.wide)
    assert "n = 64K" not in texts(figure.wide)


def test_labels_keep_their_order_and_a_line_between_them() -> None:
    spread = spread_out([10.0, 10.5, 11.0, 50.0], gap=12.0)
    assert [b - a for a, b in itertools.pairwise(spread)] == pytest.approx([12.0, 12.0, 27.5])
    assert sum(spread[:3]) / 3 == pytest.approx(10.5)
    assert spread[3] == 50.0
