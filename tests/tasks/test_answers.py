"""Every answer is found again from the prompt alone, by code that shares nothing with the generator."""

from __future__ import annotations

import itertools
import re
import sysconfig
from pathlib import Path

import pytest
import regex

from tasks.example import Example
from tasks.fuzzy_regex import FuzzyRegex
from tasks.list_ops import ListOps
from tasks.needles import RULER, Needles
from tasks.new_york import NewYork
from tasks.odd_one_out import OddOneOut
from tasks.set_data import SetData
from tasks.text import TextBytes
from tasks.text_classification import FAMILIES, TextClassification
from tasks.variable_tracking import VariableTracking
from tasks.words import ADJECTIVES, CITIES

pytestmark = pytest.mark.no_type_checks  # hundreds of examples of each task
COUNT = 60


@pytest.mark.parametrize("name", RULER)
def test_needles_hold_the_values_of_the_keys_that_are_asked(name: str) -> None:
    for example in itertools.islice(Needles(6000, **RULER[name]), COUNT):
        body, question = example.prompt.rsplit("\n", 1)
        (keys,) = re.findall(r"special magic \w+ for (.*?) mentioned in the provided text\?", question)
        pairs = re.findall(r"^One of the special magic \w+ for (\S+) is: (\S+)\.$", body, re.MULTILINE)
        assert len({value for _, value in pairs}) == len(pairs)
        wanted = [value for key in re.split(r", and |, ", keys) for name, value in pairs if name == key]
        assert wanted
        assert example.answer == " " + ", ".join(wanted)


def test_short_needles_are_asked_in_their_own_words() -> None:
    for example in itertools.islice(Needles(600, needles=3, wording="short"), COUNT):
        body, question = example.prompt.rsplit("\n", 1)
        assert body.count(question) == 1
        assert re.findall(re.escape(question) + r" (\d{7})\.", body) == [example.answer.strip()]


@pytest.mark.parametrize("depth", [0.0, 0.25, 1.0])
def test_a_needle_lies_at_its_depth(depth: float) -> None:
    for example in itertools.islice(Needles(8000, depth=depth, needles=2), 20):
        lines = example.prompt.split("\n")[1:-1]
        place = next(i for i, line in enumerate(lines) if example.answer in line)
        assert place / (len(lines) - 1) == pytest.approx(depth, abs=0.02)


@pytest.mark.parametrize(
    "settings", [{}, {"chains": 4, "hops": 2, "haystack": "text"}, {"shot": False, "hops": 0}], ids=str
)
def test_variables_are_those_that_the_assignments_lead_to(settings: dict[str, bool | int | str]) -> None:
    for example in itertools.islice(VariableTracking(4000, **settings), COUNT):  # type: ignore[arg-type]
        body, question = example.prompt.rsplit("\n", 1)
        value = re.findall(r"the value (\d+)", question)[-1]
        assigned = dict(re.findall(r"^VAR (\S+) = (?:VAR )?(\S+)$", body, re.MULTILINE))
        assert len(assigned) == len(re.findall(r"^VAR ", body, re.MULTILINE))
        found = {name for name in assigned if _resolved(name, assigned) == value}
        assert sorted(example.answer.split()) == sorted(found)


def test_a_variable_is_assigned_before_it_is_read() -> None:
    for example in itertools.islice(VariableTracking(4000, chains=3), COUNT):
        known: set[str] = set()
        for name, source in re.findall(r"^VAR (\S+) = (?:VAR )?(\S+)$", example.prompt, re.MULTILINE):
            assert source.isdigit() or source in known
            known.add(name)


@pytest.mark.parametrize("nth", [1, 2, 4])
def test_the_adjective_is_before_the_nth_mention_of_new_york(nth: int) -> None:
    for example in itertools.islice(NewYork(2000, nth=nth, decoys=3), COUNT):
        body = example.prompt[: example.prompt.index("Question:")]
        assert len(re.findall(r"(?i)new\s*york", body)) == nth + 1
        mentions = re.findall(r"the (\w+) New York", body, re.IGNORECASE)
        assert example.answer == f" {mentions[nth - 1]}"
        assert f"mention number {nth} of" in example.prompt
        others = re.findall(rf"the (\w+) (?:{'|'.join(CITIES)})\b", body, re.IGNORECASE)
        assert len({*mentions, *others}) >= nth + 1 + 3


def test_an_answer_that_names_several_adjectives_of_new_york_is_wrong() -> None:
    task = NewYork(1000)
    example = task.example(0)
    right = example.answer.strip()
    other = next(adjective for adjective in ADJECTIVES if adjective != right)
    for reply in (example.answer, f" {right}.", f"{right.upper()}\n", f" {right} New York slept", f" {right}, {right}"):
        assert task.score(example, reply) == 1
    for reply in (
        f" {right}, {other}",
        f" {right} or {other.title()}",
        f" {other} {right}",
        f"{right}{other}",
        "",
        "not that",
    ):
        assert task.score(example, reply) == 0


def test_filler_that_speaks_of_the_same_things_is_left_out(tmp_path: Path) -> None:
    """A text in which every other line would be a decoy with another answer."""
    trap = tmp_path / "trap.txt"
    lines = (
        "the fake New York",
        "new  york",
        "a New",
        "York b",
        "VAR ABCDE = 12345",
        "some special magic",
        "plain words",
    )
    trap.write_text("\n".join(lines * 200))
    text = TextBytes(trap)
    found = NewYork(2000, text=text).example(0).prompt
    assert len(re.findall(r"(?i)new\s*york", found[: found.index("Question:")])) == 3
    assert "VAR ABCDE" not in VariableTracking(3000, text=text, haystack="text").example(0).prompt
    assert "some special magic" not in Needles(2000, text=text).example(0).prompt
    assert "plain words" in found


def test_a_distance_is_kept_up_to_a_line() -> None:
    for distance in (0, 200, 1_500):
        for example in itertools.islice(NewYork(2000, nth=2, mentions=2, decoys=0, distance=distance), 30):
            _, after = re.split(r"(?s)^.*New York(?=.*Question:)", example.prompt)
            assert len(after) == example.metadata["distance"]
            assert distance <= len(after) <= max(distance, 140) + 121


def test_a_distance_beyond_the_prompt_says_how_far_it_can_be() -> None:
    with pytest.raises(ValueError, match=r"distance=990 is not allowed: with length=1000 it is at most \d{3} in"):
        NewYork(1000, distance=990).example(0)


def test_expressions_have_the_value_that_a_stack_finds() -> None:
    for settings in ({}, {"max_depth": 4, "min_length": 3, "max_length": 60}):
        for example in itertools.islice(ListOps(**settings), COUNT if settings else 20):
            assert example.prompt.endswith(" =")
            assert example.answer == f" {_on_a_stack(example.prompt[:-2].split())}"


def test_published_lengths_arguments_and_depths_are_kept() -> None:
    deepest, most, lengths = 0, 0, []
    for example in itertools.islice(ListOps(), 30):
        level, arguments = 1, [0]
        for token in example.prompt[:-2].split():
            if token == "]":
                level -= 1
                most = max(most, arguments.pop())
            else:
                arguments[-1] += 1
                deepest = max(deepest, level)
            if token.startswith("["):
                level += 1
                arguments.append(0)
        lengths.append(len(example.prompt[:-2].split()))
        assert lengths[-1] == example.metadata["length"]
    assert 500 < min(lengths) < 700 < 1000 < max(lengths) < 2000
    assert (deepest, most) == (10, 10)


def test_one_node_in_four_is_an_operator() -> None:
    """Read where length selects nothing: among trees that no length refuses, but the lone digit."""
    examples = list(itertools.islice(ListOps(max_depth=2, min_length=0, max_length=100), 2_000))
    operators = sum(example.prompt.startswith("[") for example in examples)
    assert operators / len(examples) == pytest.approx(0.25, abs=0.04)


def test_buckets_hold_the_items_that_arithmetic_puts_there() -> None:
    for example in itertools.islice(SetData(functions=("MOD_3", "MOD_5", "LEN_3", "MOD_10")), 4 * COUNT):
        items_line, function_line, _ = example.prompt.split("\n")
        kind, modulus = function_line.split()[1].split("_")
        for line in example.answer.strip("\n").split("\n"):
            name, _, held = line.partition(":")
            wanted = [
                item
                for item in items_line.split()[1:]
                if (len(item) if kind == "LEN" else _value(item)) % int(modulus) == int(name[1:])
            ]
            assert held.split() == wanted


def test_the_hash_of_the_documented_items_is_as_documented() -> None:
    assert [_value(item) % 5 for item in ("12345", "67.89", "abc123", "(45,67)")] == [0, 2, 3, 2]


def test_exactly_one_item_is_odd_whichever_documented_property_is_tried() -> None:
    numbers = [
        lambda item: item[-1] in "02468",
        lambda item: sum(map(int, item)) % 3 == 0,
        lambda item: item[-1] in "05",
        len,
        lambda item: item == "".join(reversed(item)),
    ]
    words = [len, lambda item: item[:1], lambda item: item[-1:], lambda item: bool(re.search(r"(.)\1", item))]
    for kind, properties in (("numbers", numbers), ("words", words)):
        for example in itertools.islice(OddOneOut(kind=kind), 4 * COUNT):
            items = example.prompt.split("\n")[0].split()[1:]
            odd = {item for each in properties for item in items if _alone(item, items, each)}
            assert odd == {example.answer.strip()}
            assert len(set(items)) == len(items)


def test_matches_are_those_of_the_regex_package() -> None:
    fuzzy = 0
    for example in itertools.islice(FuzzyRegex(), 6 * COUNT):
        pattern, text, _ = (line.split(" ", 1)[-1] for line in example.prompt.split("\n"))
        fuzzy += "{s<=" in pattern
        whole_words = [word for word in text.split() if regex.fullmatch(pattern, word)]
        found = whole_words if "{s<=" in pattern else regex.findall(pattern, text)
        assert example.answer.split() == found
        assert found
    assert 0.2 < fuzzy / (6 * COUNT) < 0.3


@pytest.mark.parametrize("split", ["train", "held_out"])
def test_a_snippet_stands_in_the_family_that_is_the_answer(split: str) -> None:
    for example in itertools.islice(TextClassification(900, split=split, wording="short"), COUNT):
        family = example.answer.strip()
        lines = example.prompt.split("\n")[:-1]
        assert _lines_of(family).issuperset(line for line in lines if len(line) < 80)


def test_no_file_is_both_taught_and_held_out() -> None:
    """A line of 60 characters that only one file of a family has betrays the file."""
    owners = _owners()
    files: dict[str, set[str]] = {"train": set(), "held_out": set()}
    for split, found in files.items():
        for example in itertools.islice(TextClassification(2000, split=split, wording="short"), 2 * COUNT):
            found.update(owners[line] for line in example.prompt.split("\n")[1:-2] if line in owners)
    assert min(len(found) for found in files.values()) >= len(FAMILIES)
    assert files["train"].isdisjoint(files["held_out"])


def test_families_are_equally_frequent() -> None:
    answers = [example.answer.strip() for example in itertools.islice(TextClassification(300, wording="short"), 400)]
    assert all(18 < answers.count(family) < 65 for family in FAMILIES)


def _resolved(name: str, assigned: dict[str, str]) -> str:
    while name in assigned:
        name = assigned[name]
    return name


def _on_a_stack(tokens: list[str]) -> int:
    stack: list[list[int]] = [[]]
    operators: list[str] = []
    for token in tokens:
        if token.startswith("["):
            operators.append(token)
            stack.append([])
        elif token == "]":
            values, operator = sorted(stack.pop()), operators.pop()
            middle = (values[(len(values) - 1) // 2] + values[len(values) // 2]) // 2
            result = {"[MIN": values[0], "[MAX": values[-1], "[SM": sum(values) % 10, "[MED": middle}
            stack[-1].append(result[operator])
        else:
            stack[-1].append(int(token))
    ((only,),) = stack
    return only


def _value(item: str) -> int:
    if pair := re.fullmatch(r"\((\d+),(\d+)\)", item):
        return int(pair[1]) + int(pair[2])
    return int(float(re.sub(r"[^\d.]", "", item)))


def _alone(item: str, items: list[str], prop: object) -> bool:
    """Whether the others all share one value and the item has another."""
    values = [prop(other) for other in items if other != item]  # type: ignore[operator]
    return len(set(values)) == 1 and prop(item) != values[0]  # type: ignore[operator]


def _files(family: str) -> list[Path]:
    return list(Path(sysconfig.get_path("stdlib"), family).rglob("*.py"))


def _lines_of(family: str) -> set[str]:
    return {line for path in _files(family) for line in path.read_text(encoding="utf-8", errors="ignore").split("\n")}


def _owners() -> dict[str, str]:
    owners: dict[str, str] = {}
    shared: set[str] = set()
    for path in (path for family in FAMILIES for path in _files(family) if "test" not in str(path)):
        for line in set(path.read_text(encoding="utf-8", errors="ignore").split("\n")):
            shared |= {line} if line in owners else set()
            owners[line] = str(path)
    return {line: path for line, path in owners.items() if line not in shared and 60 <= len(line) <= 110}


def test_an_example_is_text_and_metadata() -> None:
    assert Example("a", " b").text == "a b"
