from __future__ import annotations

from collections.abc import Callable

import pytest

from tasks.fuzzy_regex import FuzzyRegex
from tasks.list_ops import ListOps
from tasks.needles import Needles
from tasks.new_york import NewYork
from tasks.odd_one_out import OddOneOut
from tasks.set_data import SetData
from tasks.text_classification import TextClassification
from tasks.variable_tracking import VariableTracking

REFUSED: dict[str, tuple[Callable[[], object], str]] = {
    "haystack": (lambda: Needles(500, haystack="hay"), "haystack='hay' is not allowed: it must be one of text, noise"),
    "values": (lambda: Needles(500, values="colours"), "values='colours' is not allowed"),
    "queries": (lambda: Needles(500, needles=2, queries=3), "no more queries than needles"),
    "depth": (lambda: Needles(500, depth=1.5), "depth=1.5 is not allowed"),
    "few numbers": (lambda: Needles(9_000, haystack="needles", digits=1).example(0), "more than the 9 different names"),
    "nth": (lambda: NewYork(500, nth=3, mentions=2), "nth must be 1 to mentions"),
    "adjectives": (lambda: NewYork(500, mentions=130, decoys=9), "at most 131, the number of adjectives"),
    "distance": (lambda: NewYork(500, distance=500), "distance=500 is not allowed: it must be 0 to length=500"),
    "wording": (lambda: NewYork(500, wording="long"), "it must be one of full, short"),
    "chains": (lambda: VariableTracking(500, chains=0), "at least one chain"),
    "trees": (lambda: ListOps(min_length=10, max_length=11), r"max_length min_length \+ 2"),
    "arguments": (lambda: ListOps(max_args=1), "max_args 2"),
    "split": (lambda: TextClassification(500, split="test"), "it must be one of train, held_out"),
    "functions": (lambda: SetData(functions=("MOD_0",)), "MOD_m or LEN_m"),
    "kinds": (lambda: SetData(kinds=("colour",)), "kinds are of integer, decimal, word, pair"),
    "items": (
        lambda: SetData(items=(5, 3)),
        r"items=\(5, 3\) is not allowed: it must be two numbers, minimum and maximum",
    ),
    "odd kind": (lambda: OddOneOut(kind="colours"), "allowed kinds and keys are"),
    "odd keys": (lambda: OddOneOut(keys=("initial",)), "allowed kinds and keys are"),
    "few items": (lambda: OddOneOut(items=(3, 5)), "4 to 20"),
    "fuzzy": (lambda: FuzzyRegex(fuzzy=2.0), "fuzzy from 0 to 1"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_is_refused_in_words(name: str) -> None:
    make, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        make()


def test_lengths_that_no_tree_has_are_said_to_be_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.list_ops.TRIES", 1_000)
    with pytest.raises(ValueError, match="none of 1000 trees with max_depth=1, max_args=10 has such a length"):
        ListOps(max_depth=1, min_length=500, max_length=600).example(0)


def test_numbers_have_the_digits_asked_for() -> None:
    assert all(len(Needles(600, digits=4).example(i).answer) == 5 for i in range(20))
    items = [SetData(kinds=("integer",), digits=2).example(i).prompt.split("\n")[0].split()[1:] for i in range(50)]
    assert {len(item) for line in items for item in line} == {1, 2}
    odd = [OddOneOut(highest=99).example(i).prompt.split("\n")[0].split()[1:] for i in range(50)]
    assert max(int(item) for line in odd for item in line) <= 99
