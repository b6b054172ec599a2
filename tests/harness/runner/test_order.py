"""The order of cases within a round."""

from __future__ import annotations

import random
from collections import Counter
from typing import TYPE_CHECKING

from harness.runner.order import affordable, ascending
from tests.harness.cases import a_case

if TYPE_CHECKING:
    from harness.common.rows import Case


def shuffled() -> list[Case]:
    cases = [a_case(label=label, n=n) for label in "abc" for n in (128, 256, 512, 1024)]
    random.Random(1).shuffle(cases)
    return cases


def test_each_series_ascends_in_the_places_that_the_shuffle_gave_it() -> None:
    cases = shuffled()
    ordered = ascending(cases)
    assert [case.label for case in ordered] == [case.label for case in cases]
    for label in "abc":
        lengths = [case.n for case in ordered if case.label == label]
        assert lengths == sorted(lengths)


def test_no_case_is_lost_also_where_inputs_share_a_series() -> None:
    cases = [*shuffled(), a_case(label="a", n=128, inputs="text")]
    assert Counter(case.digest() for case in ascending(cases)) == Counter(case.digest() for case in cases)


def test_cheap_cases_go_first_if_not_all_fit_and_keep_their_order() -> None:
    cases = [a_case(n=n) for n in (512, 128, 1024, 256)]
    assert [case.n for case in affordable(cases, lambda case: case.n, 900.0)] == [512, 128, 256]
    assert affordable(cases, lambda case: case.n, 1920.0) == cases
    assert affordable(cases, lambda case: case.n, 100.0) == []
