"""BABILong: bAbI facts scattered over a long text (Kuratov et al. 2024, https://arxiv.org/abs/2406.10149).

Samples come from the hub (`RMT-team/babilong`), from a file with the same fields (input, question, target), or from a
generator. The generator makes bAbI's first two tasks (Weston et al. 2015), where a person is and where an object is,
among lines of the standard library's source code instead of novels.
"""

from __future__ import annotations

import random
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import Any

from attentions.common.settings import require
from bmrt.evaluation.evaluate import Sample
from bmrt.evaluation.generated import require_size
from bmrt.evaluation.hub import load_hub
from bmrt.evaluation.records import read_data
from tasks.haystack import place, text_lines

HUB = "RMT-team/babilong"
PLACES = ("bathroom", "bedroom", "garden", "hallway", "kitchen", "office")
PEOPLE = ("Daniel", "John", "Mary", "Sandra")
THINGS = ("apple", "football", "milk")

# Answers of bAbI's tasks. BABILong's own metric covers qa1 to qa7, qa9, and qa10.
ALL_PLACES = (*PLACES, "cinema", "park", "school")
GIVERS = ("bill", "fred", "jeff", "mary", *THINGS)
NUMBERS = ("none", "one", "two", "three", "four", "five")
ANIMALS = ("cat", "mouse", "sheep", "wolf")
COLOURS = ("gray", "green", "white", "yellow")
MOODS = ("bored", "hungry", "thirsty", "tired")
STEPS = {"n", "s", "e", "w"}  # qa19 answers are paths, such as "s,w"
LABELS: Mapping[str, Sequence[str]] = MappingProxyType(
    {
        **dict.fromkeys(("qa1", "qa2", "qa3", "qa4", "qa11", "qa12", "qa13"), PLACES),
        "qa5": GIVERS,
        **dict.fromkeys(("qa6", "qa9", "qa17", "qa18"), ("yes", "no")),
        "qa7": NUMBERS,
        "qa8": ("nothing", *THINGS),
        "qa10": ("yes", "no", "maybe"),
        "qa14": ALL_PLACES,
        "qa15": ANIMALS,
        "qa16": COLOURS,
        "qa19": tuple(STEPS),
        "qa20": (*ALL_PLACES, *MOODS, *THINGS, "pajamas"),
    }
)
KINDS = (
    ALL_PLACES,
    ("nothing", *THINGS, "pajamas"),
    (*(name.lower() for name in PEOPLE), "julie", *GIVERS),
    ("yes", "no", "maybe"),
    NUMBERS,
    ANIMALS,
    COLOURS,
    MOODS,
    tuple(STEPS),
)
SINGULAR: Mapping[str, str] = MappingProxyType(
    {"apples": "apple", "footballs": "football", "cats": "cat", "mice": "mouse", "wolves": "wolf", "grey": "gray"}
    | {"north": "n", "south": "s", "east": "e", "west": "w"}
    | {"zero": "none"}
)
DIGITS: Mapping[str, str] = MappingProxyType({str(i): word for i, word in enumerate(NUMBERS)})
APOSTROPHES = str.maketrans(dict.fromkeys("’‘ʼ′＇´`", "'"))
DENIALS = {"no", "not", "never", "neither", "nor", "without", "nobody", "nowhere"}
NEGATED_VERB = r"(?:cannot|\w*n't|(?:is|was|are|were|do|does|did|has|have|had|ca|could|wo|would|should|must)nt)"
NEGATED = re.compile(NEGATED_VERB)  # including forms without the apostrophe
AUXILIARY = r"(?:is|was|are|were|do|does|did|has|have|had|can|could|will|would|should|must)"
DENIED = rf"(?:{NEGATED_VERB}|{AUXILIARY} (?:\w+ly )?(?:not|never|no))"
# Directly after what is denied: "(the office) is not", "(in the office) she is not", "(office?) no".
DENIED_BEFORE = re.compile(rf"{DENIED}\b|(?:is where )?(?:s?he|it|they) {DENIED}$|no$")
ABSENCE = {"left", "leave", "leaves", "leaving", "from", "out", "outside", "doubt", "doubts"}  # if denied, presence
REPHRASED: Sequence[tuple[re.Pattern[str], str]] = [
    (re.compile(pattern), words)
    for pattern, words in (
        # Not denials: "no doubt", "not more than one", and "isn't she?" at the end.
        (r"\b(?:no|without(?: (?:a|any))?) (?:doubt|question)\b|\b(?:no|not) (?:more|less|fewer) than\b", " "),
        (r"\b\w+n't (?:s?he|it|they)(?=\s*(?:\?|$))", " "),
        (r"\bno longer\b", "never"),
        (r"\?\s*no(?=\s*(?:[^\w\s]|$))", " no;"),  # answers its own rhetorical question
        (r"\b(?:other (?:\w+ )?|else )than\b", "except"),
        (r"\b((?:any|every|no) ?(?:where|thing|one|body|place)|all|none)( else)? but\b", r"\1\2 except"),
        (r"\bno(?: ?(?:where|thing|one|body|place)|ne)(?: else)? except\b", "only"),
    )
]
CLAUSE_END = re.compile(  # the dashes are en and em
    r"[,;:!?\n()\[\]\u2013\u2014]|\s-+\s|\b(?:and|while|whereas|but|so|because|until|though|although)\b"
)
GO = ("moved to", "went to", "journeyed to", "travelled to", "went back to")
GENERATED = ("qa1", "qa2")
SHORTEST = 1024  # approximate bytes of facts, instructions, and examples, whatever the text

INSTRUCTIONS = {
    "qa1": "The text has facts about where people are, among lines that have nothing to do with them. Answer the "
    "question from the facts. Somebody who went to several places is in the last of them.",
    "qa2": "The text has facts about where people are and what they carry, among lines that have nothing to do with "
    "them. Answer the question from the facts. A thing is where whoever has it is.",
}
EXAMPLES = {
    "qa1": (("Daniel went to the garden. Mary moved to the office.", "Where is Daniel?", "garden"),),
    "qa2": (
        ("Mary went to the kitchen. Mary took the milk. Mary moved to the hallway.", "Where is the milk?", "hallway"),
    ),
}
PLACE_ALONE = "Always return only the name of the place, as one word."


def samples_of(source: str, *, config: str, split: str, start: int, count: int, seed: int) -> list[Sample]:
    """Return `count` samples, starting at number `start`. `source` is "generated", a file, or a hub id.

    `config` is a length such as "0k", "16k", or "1M" (in the generator, KiB or MiB of text); `split` is a task.
    Rows of a file that have a `task` belong to that task only. Raises ValueError if there are no such samples.
    """
    require(start >= 0, "start_sample_index", start, "an integer of at least 0")
    require(count >= 1, "num_samples", count, "an integer of at least 1")
    if source == "generated":
        require(split in GENERATED, "dataset_split", split, f"one of {', '.join(GENERATED)} to be generated")
        length = length_of(config)
        require_size(max(length, SHORTEST), count)
        rows: Iterator[dict[str, Any]] = islice(generate(split, length, seed, start), count)
    elif Path(source).suffix in (".json", ".jsonl"):
        of_task = (row for row in read_data(Path(source)) if row.get("task", split) == split)
        rows = islice(of_task, start, start + count)
    else:
        rows = islice(load_hub(source, config, split), start, start + count)
    found = [_sample(row, split, start + i) for i, row in enumerate(rows)]
    require(bool(found), "start_sample_index", start, f"below the number of samples in {source}")
    return found


def length_of(config: str) -> int:
    """Return the bytes of text for a length such as "4k" or "1M"; "0k" is facts only. Raises ValueError otherwise."""
    form = re.fullmatch(r"([0-9]{1,9})([kM])", config)
    require(form is not None, "dataset_config", config, "a number and k or M, as in 16k")
    assert form is not None
    return int(form[1]) * (1024 if form[2] == "k" else 1024 * 1024)


def generate(task: str, length: int, seed: int, start: int = 0) -> Iterator[dict[str, Any]]:
    """Yield rows `start`, `start` + 1, and so on forever; each depends only on task, length, seed, and its number."""
    index = start
    while True:
        draw = random.Random(f"babilong {task} {seed} {index}")
        facts, question, target = (_where_is_somebody if task == "qa1" else _where_is_something)(draw)
        lines = text_lines(start=draw.random(), without="|".join(PLACES + PEOPLE + THINGS))(length) if length else []
        size = 0
        fitting = [line for line in lines if (size := size + len(line) + 1) <= length]
        depths = sorted(draw.random() for _ in facts)
        yield {
            "input": "\n".join(place(fitting, zip(depths, facts, strict=True))),
            "question": question,
            "target": target,
        }
        index += 1


def _where_is_somebody(draw: random.Random) -> tuple[list[str], str, str]:
    moves = [(draw.choice(PEOPLE), draw.choice(PLACES)) for _ in range(draw.randint(2, 10))]
    person = draw.choice(moves)[0]
    last = [where for who, where in moves if who == person][-1]
    return [f"{who} {draw.choice(GO)} the {where}." for who, where in moves], f"Where is {person}?", last


def _where_is_something(draw: random.Random) -> tuple[list[str], str, str]:
    who, thing = draw.choice(PEOPLE), draw.choice(THINGS)
    route = [draw.choice(PLACES) for _ in range(draw.randint(2, 4))]
    taken = draw.randrange(len(route))
    facts = [f"{who} {draw.choice(GO)} the {where}." for where in route]
    facts.insert(taken + 1, f"{who} took the {thing}.")
    others = [f"{draw.choice([p for p in PEOPLE if p != who])} {draw.choice(GO)} the {draw.choice(PLACES)}."]
    return others + facts, f"Where is the {thing}?", route[-1]


def _sample(row: dict[str, Any], split: str, index: int) -> Sample:
    for name in ("input", "question", "target"):
        require(isinstance(row.get(name), str), f"sample {index}", row.get(name), f"an object with a text {name!r}")
    examples = "\n\n".join(
        f"<example>\n{facts}\nQuestion: {question}\nAnswer: {answer}\n</example>"
        for facts, question, answer in EXAMPLES.get(split, ())
    )
    parts = [INSTRUCTIONS.get(split, "Answer the question from the text."), examples, _form_of_answers(split)]
    context = "\n\n".join(part for part in parts if part) + f"\n\n<context>\n{row['input']}\n</context>"
    return Sample(
        f"{split}-{index}",
        context,
        f"\n\nQuestion: {row['question']}\nAnswer:",
        row["target"],
        {"question": row["question"]},
    )


def _form_of_answers(task: str) -> str:
    labels = LABELS.get(task, PLACES)
    if set(labels) <= set(ALL_PLACES):
        return PLACE_ALONE
    several = {"qa8": ", or several of them with commas between", "qa19": ", several of them with commas between"}
    return f"Always return only the answer, one of {', '.join(sorted(labels))}{several.get(task, '')}."


def right(sample: Sample, response: str) -> float:
    """Grade by BABILong's rule: among the task's labels, the first sentence names the target's and no other.

    Labels are whole words. Digits count as numbers ("2" is "two", "0" is "none") unless a number is spelled out. Labels
    that occur in the question are ignored, unless they are the target. A target of several labels ("apple,milk") is
    matched in any order and punctuation, except for the steps of a path. An answer that names no label is wrong.

    An answer that denies the target is also wrong: with a denial before it in its clause ("she can't be in the office")
    or directly after it ("the office is not where she is"). Clauses end at punctuation, at line ends, and at "and",
    "while", "whereas", "but", "so", "because", "until", and "though". "But", "except", and "other than" deny ("anywhere
    but the office") unless something before them is denied ("nowhere but the office"). Denying absence or doubt ("she
    hasn't left") does not deny the target, and neither does anything that these rules do not cover.
    """
    asked, target = _words(sample.facts["question"]), _words(sample.target)
    labels = _labels(sample.id.partition("-")[0], set(target)) - (set(asked) - set(target))
    sentence = _first_sentence(response).translate(APOSTROPHES)
    for pattern, words in REPHRASED:
        sentence = pattern.sub(words, sentence)
    spelled = bool(set(NUMBERS) & set(_words(sentence, digits=False)))
    clauses = [_words(clause, digits=not spelled) for clause in CLAUSE_END.split(sentence)]
    named = [word for clause in clauses for word in clause if word in labels]
    if any(_denies(clause, set(target)) for clause in clauses):
        return 0.0
    if target and set(target) <= STEPS:
        return float(named == target)
    return float(bool(target) and set(named) == set(target))


def _denies(clause: Sequence[str], target: Collection[str]) -> bool:
    """Whether a clause denies the target, before it or directly after it."""
    places = [i for i, word in enumerate(clause) if word in target]
    if not places or {*target} <= {"no", "none", "nothing"}:  # a denial only confirms these
        return False
    before, after = clause[: places[-1]], clause[places[-1] + 1 :]
    denials = [i for i, word in enumerate(before) if _is_denial(word) and word not in target]
    if "except" in before:
        return not any(i < before.index("except") for i in denials)
    if any(ABSENCE.isdisjoint(before[i:]) for i in denials):
        return True
    if {*target} <= {"yes", "maybe"}:
        return False
    return ABSENCE.isdisjoint(after) and DENIED_BEFORE.match(" ".join(after)) is not None


def _is_denial(word: str) -> bool:
    return word in DENIALS or NEGATED.fullmatch(word) is not None


def _labels(task: str, target: set[str]) -> set[str]:
    """Return the possible answers: the task's own, or, if the task is unknown, all of the target's kind."""
    known = set(LABELS.get(task, ()))
    if target <= known:
        return known
    return target.union(*(kind for kind in KINDS if target & set(kind)))


def _first_sentence(response: str) -> str:
    """Return the text up to a full stop (not after a digit), a blank line, or another example made up by the model."""
    sentence = re.split(r"\n\s*\n|<context>|<example>|\bquestion\s*:", response.lower().strip())[0]
    return re.split(r"(?<!\d)\.", sentence)[0]


def _words(text: str, *, digits: bool = True) -> list[str]:
    """Return words in the form that labels have; with `digits`, digits become number words."""
    found = re.findall(r"[\w']+", text.lower().translate(APOSTROPHES))
    words = [word.strip("'").removesuffix("'s") for word in found]
    return [SINGULAR.get(word, DIGITS.get(word, word) if digits else word) for word in words]
