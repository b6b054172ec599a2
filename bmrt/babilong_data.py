"""BABILong: facts of bAbI scattered over a long text (Kuratov et al. 2024, https://arxiv.org/abs/2406.10149).

Samples come from the hub (`RMT-team/babilong`), from a file of the same fields (input, question, target), or from a
generator here: bAbI's first two tasks (Weston et al. 2015), where somebody is and where something is, in the lines of
the standard library's source instead of novels.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from attentions.base import require
from bmrt.evaluation import Sample
from bmrt.hub import load_hub
from bmrt.records import read_jsonl
from tasks.haystack import place, text_lines

HUB = "RMT-team/babilong"
PLACES = ("bathroom", "bedroom", "garden", "hallway", "kitchen", "office")
PEOPLE = ("Daniel", "John", "Mary", "Sandra")
THINGS = ("apple", "football", "milk")
GO = ("moved to", "went to", "journeyed to", "travelled to", "went back to")
GENERATED = ("qa1", "qa2")

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
POST_PROMPT = "Always return only the name of the place, as one word."


def samples_of(source: str, *, config: str, split: str, start: int, count: int, seed: int) -> list[Sample]:
    """`count` samples from number `start` on. `source`: "generated", a file, or a hub id.

    `config` is a length such as "0k", "16k" or "1M" (in the generator: as many thousand bytes), `split` a task.
    Raises ValueError where there are no such samples.
    """
    if source == "generated":
        require(split in GENERATED, "dataset_split", split, f"one of {', '.join(GENERATED)} to be generated")
        rows: Iterator[dict[str, Any]] = generate(split, length_of(config), seed)
    elif Path(source).suffix in (".json", ".jsonl"):
        rows = iter(read_jsonl(Path(source)))
    else:
        rows = iter(load_hub(source, config, split))
    found = [_sample(row, split, start + i) for i, row in enumerate(islice(rows, start, start + count))]
    require(bool(found), "start_sample_index", start, f"below the number of samples in {source}")
    return found


def length_of(config: str) -> int:
    """Bytes of text for a length such as "4k" or "1M"; "0k" is facts alone. Raises ValueError for another form."""
    number, unit = config[:-1], config[-1:]
    require(number.isdigit() and unit in ("k", "M"), "dataset_config", config, "a number and k or M, as in 16k")
    return int(number) * (1024 if unit == "k" else 1024 * 1024)


def generate(task: str, length: int, seed: int) -> Iterator[dict[str, Any]]:
    """Rows without end; row i depends on the arguments and i alone."""
    index = 0
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
    parts = [INSTRUCTIONS.get(split, "Answer the question from the text."), examples, POST_PROMPT]
    context = "\n\n".join(part for part in parts if part) + f"\n\n<context>\n{row['input']}\n</context>"
    return Sample(
        f"{split}-{index}",
        context,
        f"\n\nQuestion: {row['question']}\nAnswer:",
        row["target"],
        {"question": row["question"]},
    )


def right(sample: Sample, response: str) -> float:
    """BABILong's rule: of the task's labels, the first sentence names the target and no other.

    Labels that the question names do not count. An answer that names nothing is wrong.
    """
    said = response.lower().strip().split("\n")[0].split(".")[0]
    asked, target = sample.facts["question"].lower(), sample.target.lower()
    labels = {target, *PLACES} - {place for place in PLACES if place in asked and place != target}
    return float({label for label in labels if label in said} == {target})
