from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from harness.report.headline import headlines
from harness.report.sections import ReportSection, sections_of
from harness.report.tables.answer import ANY, EXACT, LOOSEST, fastest, runs_of
from harness.results.run_file import RunFacts
from harness.stats.analysis import Analysis
from tests.harness.report_fixture import BITS, FLASH, MADE, RANDOM, VANILLA, WINDOW, Made, made_facts, made_rows

if TYPE_CHECKING:
    from harness.common.rows import Row

SIZES = tuple(2**power for power in range(9, 16))


def sections(rows: Sequence[Row], made: Sequence[Made] = MADE) -> list[ReportSection]:
    return sections_of(Analysis(rows), RunFacts.model_validate(made_facts(made)))


def shown(rows: Sequence[Row], made: Sequence[Made] = MADE) -> list[str]:
    return [headline.text for headline in headlines(sections(rows, made))]


def changed(rows: Sequence[Row], label: str, **changes: Any) -> list[Row]:
    return [row.model_copy(update=changes) if row.label == label else row for row in rows]


def winner(section: ReportSection, n: int, tolerance: float, *, control: bool = False) -> str:
    pick = fastest(section, n, tolerance, control=control)
    return pick.curve.label if pick else ""


def test_short_lengths_go_to_the_exact_method_and_long_ones_to_the_approximation() -> None:
    section = sections(made_rows(lengths=SIZES))[0]
    assert [label for label, _ in runs_of(section, LOOSEST)] == ["flash", "bit_sampling"]
    assert [label for label, _ in runs_of(section, EXACT)] == ["flash"]


def test_a_control_is_never_the_answer_however_fast_and_exact() -> None:
    perfect = replace(WINDOW, errors={"text": 0.001}, at_1k_s=1e-6, floor_s=1e-6)
    section = sections(made_rows((FLASH, perfect), lengths=SIZES), (FLASH, perfect))[0]
    assert {winner(section, n, LOOSEST) for n in SIZES} == {"flash"}
    assert {winner(section, n, LOOSEST, control=True) for n in SIZES} == {"window"}


def test_a_method_beyond_the_tolerance_does_not_qualify() -> None:
    section = sections(made_rows(lengths=SIZES))[0]
    assert winner(section, SIZES[-1], 0.20) == "bit_sampling"
    assert winner(section, SIZES[-1], 0.05) == "flash"


def test_the_worst_round_decides_about_the_error() -> None:
    rows = made_rows(lengths=SIZES)
    worse = next(row for row in rows if row.label == "bit_sampling" and row.n == SIZES[-1])
    rows[rows.index(worse)] = worse.model_copy(update={"metrics": worse.metrics | {"error": 0.21}})
    assert winner(sections(rows)[0], SIZES[-1], 0.20) == "flash"


def test_of_methods_that_cannot_be_told_apart_the_exact_one_is_preferred() -> None:
    twin = replace(FLASH, label="twin", exact=False, errors={"text": 0.001})
    rows = changed(made_rows((FLASH, twin), lengths=SIZES), "flash", time_s=1.0, samples_s=[1.0])
    rows = [row.model_copy(update={"time_s": t, "samples_s": [t]}) if row.label == "twin" else row
            for row in rows for t in [0.9 + 0.2 * (row.round == 1)]]  # fmt: skip
    pick = fastest(sections(rows, (FLASH, twin))[0], SIZES[0], LOOSEST)
    assert pick is not None
    assert (pick.curve.label, pick.tied) == ("flash", ("twin",))


def test_a_wrong_answer_gives_no_time_in_any_round() -> None:
    rows = made_rows(lengths=SIZES)
    last = max(index for index, row in enumerate(rows) if row.label == "flash" and row.n == SIZES[0])
    rows[last] = rows[last].model_copy(update={"status": "wrong", "reason": "off by 1e-2"})
    section = sections(rows)[0]
    assert winner(section, SIZES[0], EXACT) == "vanilla"
    assert "flash gives wrong results at 512 and has no time there." in shown(rows)


def test_the_headline_says_what_to_use_up_to_where() -> None:
    text = shown(made_rows(lengths=SIZES))[0]
    assert text.startswith(
        "Up to 2K use flash; from 4K bit_sampling is 1.8× to 13× faster than exact attention at up to "
    )
    assert text.endswith("12 % error.")


def test_the_headline_says_so_where_nothing_approximate_pays() -> None:
    texts = shown(made_rows(lengths=SIZES, inputs="gaussian"))
    assert texts[0] == "Use flash at every length from 512 to 32K: nothing faster comes within 20 % of exact attention."
    assert texts[1] == "bit_sampling is 13× faster at 32K, but with an error of 80 %."


def test_a_slow_approximation_is_not_offered_as_the_next_best() -> None:
    slow = replace(BITS, at_1k_s=1.0, errors={"text": 0.5})
    assert not any(
        "but with an error" in text for text in shown(made_rows((FLASH, slow), lengths=SIZES), (FLASH, slow))
    )


def test_an_error_that_nobody_measured_is_not_called_large() -> None:
    rows = changed(made_rows((FLASH, BITS), lengths=SIZES), "bit_sampling", metrics={})
    assert shown(rows, (FLASH, BITS))[0].endswith("the error of bit_sampling was not measured.")


def test_a_lone_approximation_is_not_compared_with_an_exact_method_that_was_never_there() -> None:
    assert (
        shown(made_rows((BITS,), lengths=SIZES), (BITS,))[0] == "Up to 32K bit_sampling is fastest at up to 12 % error."
    )


def test_a_control_that_does_as_well_is_named() -> None:
    rival = replace(WINDOW, errors={"text": 0.05})
    rows = made_rows((FLASH, BITS, rival), lengths=SIZES)
    assert any(
        text.startswith("A control is as fast and at least as accurate: window at 4K, 8K, 16K and 32K.")
        for text in shown(rows)
    )
    rows = made_rows((FLASH, BITS, WINDOW, RANDOM), lengths=SIZES)
    assert "No control is as accurate in as little time." in shown(rows)


@pytest.mark.parametrize(("leak", "told"), [(0.0, False), (1e-6, False), (0.03, True), (float("nan"), True)])
def test_a_leak_beyond_rounding_is_told(leak: float, told: bool) -> None:
    leaky = replace(BITS, leak=leak)
    texts = shown(made_rows((FLASH, leaky), lengths=SIZES), (FLASH, leaky))
    assert any(text.startswith("bit_sampling violates causality") for text in texts) is told


def test_a_leak_is_told_although_the_answer_was_wrong() -> None:
    rows = changed(made_rows((FLASH, BITS), lengths=SIZES), "bit_sampling", status="wrong", metrics={"leak": 0.5})
    assert any("changes" not in text and text.startswith("bit_sampling violates causality") for text in shown(rows))


def test_a_method_without_a_mask_leaks_nothing() -> None:
    leaky = replace(BITS, leak=0.5)
    assert not any("causality" in text for text in shown(made_rows((FLASH, leaky), lengths=SIZES, causal=False)))


def test_the_longest_length_of_exact_attention_is_told() -> None:
    texts = shown(made_rows((VANILLA, BITS), lengths=SIZES), (VANILLA, BITS))
    assert "No exact method finished beyond 16K." in texts


def test_accuracy_without_times_is_told_next_to_the_best_control() -> None:
    few = [row for row in made_rows(lengths=SIZES, rounds=1, inputs="planted") if row.label not in {"flash", "vanilla"}]
    untimed = [row.model_copy(update={"subject": "accuracy", "time_s": None, "samples_s": None}) for row in few]
    assert (
        "On planted inputs at 32K the closest method is bit_sampling, with an error of 17 % (error_v 14 %); "
        "the closest control is window, with an error of 110 % (error_v 84 %)."
    ) in shown(made_rows(lengths=SIZES) + untimed)


def test_the_order_of_rows_changes_nothing() -> None:
    rows = made_rows(lengths=SIZES[:3], rounds=1) + made_rows(lengths=SIZES[:3], rounds=1, inputs="planted")
    orders = [[(section.title, [curve.label for curve in section.curves]) for section in sections(each)]
              for each in (rows, rows[::-1])]  # fmt: skip
    assert orders[0] == orders[1]
    assert [title for title, _ in orders[0]] == ["text inputs", "planted inputs"]


def test_any_error_is_a_tolerance_of_its_own() -> None:
    section = sections(made_rows(lengths=SIZES, inputs="gaussian"))[0]
    assert [winner(section, SIZES[-1], tolerance) for tolerance in (LOOSEST, ANY)] == ["flash", "bit_sampling"]


def test_every_kind_of_inputs_gets_its_sentence() -> None:
    rows = made_rows(lengths=SIZES) + made_rows(lengths=SIZES, inputs="gaussian")
    texts = shown(rows)
    assert texts[0].endswith("error (on text inputs).")
    assert any(text.startswith("On gaussian inputs: use flash") for text in texts)
