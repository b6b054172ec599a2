"""BABILong's rule: the target and nothing else that could be the answer."""

from __future__ import annotations

import re

import pytest

from bmrt.evaluation.babilong_data import LABELS, right
from bmrt.evaluation.evaluate import Sample


def judged(question: str, target: str, response: str, name: str = "own-0") -> float:
    return right(Sample(name, "", "", target, {"question": question}), response)


@pytest.mark.parametrize(
    ("response", "score"),
    [
        ("office", 1.0),
        (" The office.\nkitchen", 1.0),
        ("'Office'", 1.0),
        ("office\n\nQuestion: Where is Mary?\nAnswer: kitchen", 1.0),
        ("office Question: Where is Mary? Answer: kitchen", 1.0),
        ("In the hallway, no, the office", 1.0),
        ("office or kitchen", 0.0),
        ("office\nkitchen", 0.0),
        ("kitchen", 0.0),
        ("", 0.0),
        ("The off", 0.0),
        ("officer", 0.0),
        ("not in the office", 0.0),
        ("He isn't in the office", 0.0),
        ("He was never in the office", 0.0),
    ],
)
def test_the_first_sentence_names_the_place_and_no_other(response: str, score: float) -> None:
    """A place that the question names does not count against an answer."""
    assert judged("Where was John before the hallway?", "office", response) == score
    assert judged("Where was John before the hallway?", "office", response, "qa3-7") == score


DENYING = """is not in; isn't in; isn’t in; isnʼt in; won`t be in; ISN'T in; isnt in; is never in; is no longer in
is nowhere near; cannot be in; can not be in; can't be in; can’t be in; couldn't be in; won't be in; wouldn't be in
shouldn't be in; mustn't be in; hasn't been in; hadn't been in; haven't been in; has not been in; had never been in
ain't in; didn't go to; does not go to; wasn't in; weren't in; aren't in; don't go to; left without seeing
is neither here nor in"""
DENIED = [
    *(f"She {words} the office" for words in re.split(r"; |\n", DENYING)),
    "Nobody is in the office",
    "the office is not where she is",
    "The office isn't where she is",
    "The office has never been hers",
    "In the office she is not",
    "The office is no longer where she is",
    "The office is certainly not where she is",
    "The office is where she isn't",
    "In the office she is not, I think",
    "The office cannot be right",
    "not the office",
    "neither the office nor anywhere near it",
    "She left and is not in the office",
    "She isn't in the office since she left",
    "Every place but the office",
    "somewhere other than the office",
    "office? No",
    "office? No.",
    "She is anywhere but the office",
    "everywhere except the office",
]


@pytest.mark.parametrize("response", DENIED)
def test_an_answer_that_denies_the_place_is_wrong(response: str) -> None:
    assert judged("Where was John before the hallway?", "office", response) == 0
    assert judged("Where was John before the hallway?", "office", response.replace("office", "Office"), "qa3-7") == 0


@pytest.mark.parametrize(
    "response",
    [
        "She is in the office, she cannot be in the hallway",
        "office (not the hallway)",
        "the office and not the hallway",
        "She isn't in the hallway - office",
        "In the office, nowhere else",
        "The officer notes that nothing is known, but the office it is",
    ],
)
def test_a_denial_of_something_else_is_none_of_the_answer(response: str) -> None:
    assert judged("Where was John before the hallway?", "office", response) == 1


AFFIRMING = {
    ("qa1", "office"): """She can't be anywhere but the office.
        Mary isn't anywhere but the office
        Mary couldn’t be anywhere other than the office.
        I don't see any place other than the office
        There is nowhere Mary can be except the office
        I wouldn't say anything but office
        Nowhere except the office
        Nowhere but the office
        Nowhere else but the office
        Mary hasn't left the office.
        Mary has not yet left the office
        Mary did not leave the office
        Mary hasn't moved from the office
        Mary isn't out of the office
        I don't doubt that Mary is in the office
        It wasn't until later that Mary went to the office
        Mary is in the office and has not left the office.
        Mary is in the office (John is not).
        Mary is in the office and John isn't.
        Mary is in the office because she can't move
        Mary is in the office isn't she?
        Mary is in the office, isn't she
        The office is no doubt where Mary is.
        The office is without doubt where Mary is.
        The office is without a doubt where Mary is.
        The office was never left by Mary.
        The office hasn't been left by Mary
        Office is not a place she left
        Office|John is not
        the office|The others are not
        office!|The milk isn't
        Office? I cannot say""",
    ("qa2", "office"): """The milk cannot be anywhere except the office.
        The milk isn't in any place other than the office
        The milk is in the office while the apple isn't
        Mary left the milk in the office and did not""",
    ("qa5", "jeff"): """Nobody except Jeff
        Nobody other than Jeff
        Nobody else than Jeff
        Nobody but Jeff
        No one but Jeff
        It can't be anyone but Jeff
        Jeff and nobody else""",
    ("qa6", "yes"): """She can't be elsewhere so yes
        she hasn't left so yes""",
    ("qa10", "maybe"): """I can't tell so maybe
        It isn't certain (maybe)""",
    ("qa7", "two"): """1. Two
        Two (1 apple and 1 milk)
        Two: 1) apple 2) milk
        Answer 1: two
        two objects, 1 apple, 1 football
        two items (items 1 and 2)
        two out of 5
        two of the 3 things
        two|3 facts""",
    ("qa7", "one"): """one object, not 2
        no more than one
        not more than 1""",
    ("qa8", "apple"): """She isn't carrying anything but the apple
        She doesn't carry anything but the apple
        nothing but the apple
        nothing except the apple""",
    ("qa15", "wolf"): """She isn't afraid of anything but wolves
        wolf (not certain)""",
    ("qa19", "s,w"): "You can't go any other way than s,w",
}


@pytest.mark.parametrize(
    ("name", "target", "response"),
    [
        (f"{task}-0", target, line.strip().replace("|", "\n"))
        for (task, target), lines in AFFIRMING.items()
        for line in lines.splitlines()
    ],
)
def test_a_right_answer_with_a_denial_that_is_not_of_it_is_right(name: str, target: str, response: str) -> None:
    assert judged("What is it?", target, response, name) == 1


@pytest.mark.parametrize(
    ("target", "response", "score"),
    [
        ("two", "2", 1.0),
        ("two", "2.", 1.0),
        ("two", "She is carrying 2 objects", 1.0),
        ("none", "0", 1.0),
        ("none", "zero", 1.0),
        ("none", "She isn't carrying any so none", 1.0),
        ("one", "1", 1.0),
        ("three", "3", 1.0),
        ("two", "12", 0.0),
        ("two", "2.5", 0.0),
        ("two", "1", 0.0),
        ("two", "1 or 2", 0.0),
        ("none", "2", 0.0),
        ("two", "not 2", 0.0),
    ],
)
def test_digits_are_numbers(target: str, response: str, score: float) -> None:
    """BABILong's own prompt asks for `$number_of_objects$`, which models answer either way."""
    for name in ("qa7-0", "own-0"):
        assert judged("How many objects is Ann carrying?", target, response, name) == score


@pytest.mark.parametrize("task", [*LABELS])
def test_of_every_task_one_label_is_right_and_several_are_wrong(task: str) -> None:
    labels = sorted(LABELS[task])
    for i, label in enumerate(labels):
        other = labels[i - 1]
        for name in (f"{task}-0", "own-0"):  # without the task's name, by the kind of the target
            assert judged("What?", label, f"{label}.", name) == 1
            assert judged("What?", label, f"{label.upper()}!", name) == 1
            assert judged("What?", label, "", name) == 0
            assert judged("What?", label, "I do not know", name) == 0
            assert judged("What?", label, other, name) == 0
        assert judged("What?", label, f"{label} or {other}", f"{task}-0") == 0


@pytest.mark.parametrize(
    ("response", "score"),
    [
        ("apple,milk", 1.0),
        ("apple and milk", 1.0),
        ("apple, milk", 1.0),
        ("milk and the apple.", 1.0),
        ("- apple\n- milk", 1.0),
        ("Milk; an apple!", 1.0),
        ("She is carrying the apple and the milk", 1.0),
        ("apple", 0.0),
        ("apple, milk and football", 0.0),
        ("nothing", 0.0),
        ("apple and milk, or nothing", 0.0),
        ("apple but not milk", 0.0),
        ("apple and not milk", 0.0),
        ("the apple; she has no milk", 0.0),
        ("pineapple and milk", 0.0),
    ],
)
def test_lists_are_right_in_any_form(response: str, score: float) -> None:
    for name in ("qa8-3", "own-3"):
        assert judged("What is Mary carrying?", "apple,milk", response, name) == score


@pytest.mark.parametrize(
    ("target", "response", "score"),
    [
        ("s,w", "s,w", 1.0),
        ("s,w", "south, then west", 1.0),
        ("s,w", "w,s", 0.0),
        ("n,n", "n, n", 1.0),
        ("n,n", "n", 0.0),
    ],
)
def test_a_path_has_its_order(target: str, response: str, score: float) -> None:
    assert judged("How do you go from the kitchen to the garden?", target, response, "qa19-0") == score


@pytest.mark.parametrize(
    ("question", "target", "response", "score"),
    [
        ("Is Ann in the hallway?", "no", "no, she is not in the hallway", 1.0),
        ("Is Ann in the hallway?", "yes", "yes or no", 0.0),
        ("Is Ann in the park?", "maybe", "maybe not, no", 0.0),
        ("What is Gertrude afraid of?", "wolf", "Gertrude is afraid of wolves", 1.0),
        ("Who gave the milk to Jeff?", "Fred", "Fred gave the milk to Jeff", 1.0),
        ("Who gave the milk to Jeff?", "Fred", "Fred or Bill", 0.0),
        ("How many objects is Ann carrying?", "one", "one of the two", 0.0),
        ("Where is the capital?", "Paris", "in Paris", 1.0),  # data of one's own, of no known kind
        ("Where is the capital?", "Paris", "in the comparison", 0.0),
    ],
)
def test_words_are_whole_and_of_the_target_s_kind(question: str, target: str, response: str, score: float) -> None:
    assert judged(question, target, response) == score
