from __future__ import annotations

import itertools
import json
import random

import pytest

from tasks.example import Example, Mixed, Task, contained
from tasks.fuzzy_regex import FuzzyRegex
from tasks.list_ops import ListOps
from tasks.mqar import MQARText
from tasks.needles import RULER, Needles
from tasks.new_york import NewYork
from tasks.odd_one_out import OddOneOut
from tasks.set_data import SetData
from tasks.text_classification import TextClassification
from tasks.variable_tracking import VariableTracking

KINDS: dict[str, type[Task]] = {
    "fuzzy_regex": FuzzyRegex,
    "list_ops": ListOps,
    "mqar_text": MQARText,
    "needles": Needles,
    "new_york": NewYork,
    "odd_one_out": OddOneOut,
    "set_data": SetData,
    "text_classification": TextClassification,
    "variable_tracking": VariableTracking,
}
SETTINGS: dict[str, dict[str, int]] = {
    "list_ops": {"min_length": 20, "max_length": 99},
    "mqar_text": {"length": 512, "pairs": 11},
    "needles": {"length": 1024, "needles": 3},
    "new_york": {"length": 1024},
    "text_classification": {"length": 1024},
    "variable_tracking": {"length": 1500},
}


def make(name: str, seed: int = 0, **settings: int) -> Task:
    return KINDS[name](**{**SETTINGS.get(name, {}), "seed": seed, **settings})


@pytest.mark.parametrize("name", KINDS)
def test_an_example_is_a_function_of_settings_seed_and_index(name: str) -> None:
    assert [make(name).example(i) for i in (3, 0)] == [make(name).example(i) for i in (3, 0)]


@pytest.mark.parametrize("name", KINDS)
def test_seeds_and_indices_give_different_examples(name: str) -> None:
    prompts = {make(name, seed).example(index).prompt for seed in range(5) for index in range(20)}
    assert len(prompts) >= 98


@pytest.mark.parametrize("name", KINDS)
def test_a_stream_can_be_resumed_and_shared(name: str) -> None:
    task = make(name)
    whole = list(itertools.islice(task, 6))
    assert list(itertools.islice(task.stream(2), 4)) == whole[2:]
    assert list(itertools.islice(task.stream(1, 2), 3)) == whole[1::2]


@pytest.mark.parametrize("name", KINDS)
def test_the_answer_itself_scores_one_and_another_does_not(name: str) -> None:
    task = make(name)
    first, other = task.example(0), next(e for e in task.stream(1) if e.answer != task.example(0).answer)
    assert task.score(first, first.answer) == 1
    assert task.score(first, other.answer) < 1
    assert task.score(first, "") == 0


@pytest.mark.parametrize("name", KINDS)
def test_facts_hold_the_name_of_the_task_and_can_be_json(name: str) -> None:
    example = make(name).example(0)
    assert example.metadata["task"] == name
    assert json.loads(json.dumps(example.metadata)) == example.metadata


@pytest.mark.parametrize("name", ["needles", "new_york", "text_classification", "variable_tracking"])
def test_length_bounds_prompt_and_answer_and_is_used_up_to_a_line(name: str) -> None:
    length = SETTINGS[name]["length"]
    for example in itertools.islice(make(name), 20):
        assert length - 2 - 125 <= len(example.text.encode()) <= length - 2


@pytest.mark.parametrize("name", ["needles", "new_york", "variable_tracking", "text_classification"])
def test_a_length_without_room_says_what_is_needed(name: str) -> None:
    with pytest.raises(ValueError, match=r"length=40 is not allowed: this example needs at least \d\d+ tokens"):
        make(name, length=40).example(0)


def test_an_odd_one_is_guessed_as_often_as_chance_says() -> None:
    task, draw = OddOneOut(items=(5, 7)), random.Random(0)
    examples = list(itertools.islice(task, 1_000))
    hits = [task.score(e, draw.choice(e.prompt.split("\n")[0].split()[1:])) for e in examples]
    expected = sum(map(task.chance, examples)) / len(examples)
    assert sum(hits) / len(hits) == pytest.approx(expected, abs=4 * (expected / len(examples)) ** 0.5)


def test_buckets_are_guessed_as_often_as_chance_says() -> None:
    task, draw = SetData(functions=("MOD_2",), items=(4, 4)), random.Random(0)
    examples, hits = list(itertools.islice(task, 1_000)), []
    for example in examples:
        guess: list[list[str]] = [[], []]
        for item in example.prompt.split("\n")[0].split()[1:]:
            draw.choice(guess).append(item)
        hits.append(task.score(example, "".join(f"\nB{b}: {' '.join(items)}" for b, items in enumerate(guess))))
    expected = sum(map(task.chance, examples)) / len(examples)
    assert sum(hits) / len(hits) == pytest.approx(expected, abs=4 * (expected / len(examples)) ** 0.5)


def test_a_mixture_draws_each_task_by_its_weight_and_scores_by_its_rule() -> None:
    mixed = Mixed([OddOneOut(), SetData(), FuzzyRegex()], [3.0, 1.0, 0.0], seed=5)
    examples = list(itertools.islice(mixed, 800))
    share = sum(example.metadata["task"] == "odd_one_out" for example in examples) / 800
    assert share == pytest.approx(0.75, abs=0.06)
    assert {example.metadata["task"] for example in examples} == {"odd_one_out", "set_data"}
    sets = next(example for example in examples if example.metadata["task"] == "set_data")
    assert 0 < mixed.score(sets, sets.answer + "\nB99: 1") < 1
    odd = next(example for example in examples if example.metadata["task"] == "odd_one_out")
    assert mixed.chance(odd) == 1 / odd.metadata["items"]


@pytest.mark.parametrize("weights", [[1.0], [1.0, -1.0], [0.0, 0.0]])
def test_weights_that_do_not_fit_are_refused(weights: list[float]) -> None:
    with pytest.raises(ValueError, match="one weight per task"):
        Mixed([OddOneOut(), SetData()], weights)


def test_no_tasks_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one task"):
        Mixed([])


def test_containment_counts_references_whatever_the_case() -> None:
    assert contained(["Abc", "17", "x9"], "it is aBC, and 17.") == pytest.approx(2 / 3)


@pytest.mark.parametrize("references", [[], [""], ["a", ""]])
def test_what_every_output_contains_is_no_reference(references: list[str]) -> None:
    with pytest.raises(ValueError, match="at least one, and none may be empty"):
        contained(references, "a")


def test_white_space_apart_an_output_must_be_the_answer() -> None:
    task = ListOps(min_length=3, max_length=9)
    example = Example("[MAX 1 2 ] =", " 2")
    assert [task.score(example, output) for output in ("2\n", " 2", "2 2", "12")] == [1, 1, 0, 0]


def test_all_tasks_of_ruler_are_there() -> None:
    assert len(RULER) == 8
    for settings in RULER.values():
        assert Needles(4096, **settings).example(0).answer
