"""The table of speed relative to the strongest exact method: which method that is, and the ratios."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from harness.report.figures.palette import assign
from harness.report.sections import sections_of
from harness.report.tables.relative import speed_table
from harness.results.run_file import RunFacts
from harness.stats.analysis import Analysis
from tests.harness.report_fixture import BITS, FLASH, MADE, VANILLA, WINDOW, Made, made_facts, made_rows

if TYPE_CHECKING:
    from harness.common.rows import Row
    from harness.report.pieces import Cell, Table

SIZES = (512, 1024, 2048)


def table_of(rows: Sequence[Row], made: Sequence[Made] = MADE) -> Table | None:
    (section,) = sections_of(Analysis(list(rows)), RunFacts.model_validate(made_facts(made)))
    labels = [curve.label for curve in section.curves]
    return speed_table(section, assign(labels, exact=[], controls=[]))


def cells(table: Table | None) -> Mapping[str, Sequence[Cell]]:
    assert table is not None
    return {row[0].text: row[1:] for row in table.rows}


def timed(rows: Sequence[Row], times_s: Mapping[str, Sequence[float]]) -> list[Row]:
    """The rows with these times, one per round, at every length."""
    return [
        row.model_copy(update={"time_s": (t := times_s[row.label][row.round]), "samples_s": [t]})
        for row in rows
        if row.label in times_s
    ]


def test_ratios_are_of_medians_over_rounds_with_the_range_of_rounds() -> None:
    rows = timed(
        made_rows((FLASH, BITS), SIZES, rounds=3), {"flash": (6.0, 10.0, 12.0), "bit_sampling": (2.0, 5.0, 3.0)}
    )
    table = table_of(rows, (FLASH, BITS))
    assert table is not None
    assert table.title == "Speed relative to flash"
    found = cells(table)
    assert [cell.text for cell in found["bit_sampling"]] == ["3.3×"] * 3
    assert found["bit_sampling"][0].sort == 10 / 3
    assert found["bit_sampling"][0].note == "1.2× to 6.0×"
    assert [(cell.text, cell.note) for cell in found["flash"]] == [("1.0×", "")] * 3


def test_the_strongest_exact_method_is_the_one_to_compare_with() -> None:
    rows = timed(
        made_rows((VANILLA, FLASH, WINDOW), SIZES, rounds=1), {"vanilla": (4.0,), "flash": (2.0,), "window": (1.0,)}
    )
    table = table_of(rows)
    assert table is not None
    assert table.title == "Speed relative to flash"
    found = cells(table)
    assert {name: row[0].text for name, row in found.items()} == {
        "vanilla": "0.5×",
        "flash": "1.0×",
        "window": "2.0×",
    }


def test_there_is_no_ratio_where_the_exact_method_has_no_time() -> None:
    short = replace(FLASH, longest=1024)
    table = table_of(made_rows((short, BITS), SIZES), (short, BITS))
    assert table is not None
    assert [column.title for column in table.columns] == ["method", "512", "1K"]


def test_without_an_exact_method_or_without_another_there_is_no_table() -> None:
    assert table_of(made_rows((BITS, WINDOW), SIZES), (BITS, WINDOW)) is None
    assert table_of(made_rows((FLASH,), SIZES), (FLASH,)) is None
