"""Needles in a haystack, as in RULER: find the value that the text gives for a key.

Hsieh et al. 2024, RULER, https://arxiv.org/abs/2404.06654, its eight `niah` tasks. A needle is a sentence that gives
one value for one key. Needles with other keys are decoys; all keys and values of a prompt are distinct, and the filler
never mentions them. Source code replaces RULER's essays, which may not be redistributed.

    for example in Needles(4096, depth=0.5): ...
    Needles(4096, **RULER["niah_multikey_1"])
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from tasks.example import Example, Task, contained, one_of
from tasks.haystack import Filler, Room, noise, place, text_lines
from tasks.names import NAMES

if TYPE_CHECKING:
    from tasks.text import TextBytes
    from tasks.tokenizer import Tokenizer

DEPTHS = 40  # RULER places needles at 40 equally spaced depths


class Wording(NamedTuple):
    """The sentences of a prompt, with placeholders {kind}, {key}, and {value}."""

    opening: str
    needle: str
    question: str


WORDINGS: Mapping[str, Wording] = MappingProxyType(
    {
        "ruler": Wording(
            "Some special magic {kind} are hidden within the following text. Make sure to memorize it. "
            "I will quiz you about the {kind} afterwards.",
            "One of the special magic {kind} for {key} is: {value}.",
            "What are all the special magic {kind} for {key} mentioned in the provided text? "
            "The special magic {kind} for {key} mentioned in the provided text are",
        ),
        "short": Wording("", "The special magic of {key} is {value}.", "The special magic of {key} is"),
    }
)

_WORDS = {"keys": "words", "values": "numbers"}
RULER: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "niah_single_1": {"haystack": "noise", **_WORDS},
        "niah_single_2": {"haystack": "text", **_WORDS},
        "niah_single_3": {"haystack": "text", "keys": "words", "values": "uuids"},
        "niah_multikey_1": {"haystack": "text", **_WORDS, "needles": 4},
        "niah_multikey_2": {"haystack": "needles", **_WORDS},
        "niah_multikey_3": {"haystack": "needles", "keys": "uuids", "values": "uuids"},
        "niah_multivalue": {"haystack": "text", **_WORDS, "values_each": 4},
        "niah_multiquery": {"haystack": "text", **_WORDS, "needles": 4, "queries": 4},
    }
)


class Needles(Task):
    """Prompts of at most `length` tokens with `needles` keys of `values_each` values, of which `queries` are queried.

    length: of prompt, answer, bos, and eos, in tokens of `tokenizer` (default: bytes). Whole lines of filler take the
        remaining space.
    haystack: "text" (lines of `text`; default: the standard library's source), "noise" (five sentences repeated), or
        "needles" (only decoys).
    keys, values: "words" (adjective-noun), "numbers" (of `digits` digits), or "uuids".
    depth: position of the queried needle among the lines, 0 (first) to 1 (last); None: each needle at one of 40 depths.
        Decoys are always at random depths.
    wording: "ruler", or "short" for small models: no explanation, and a question that begins like its needle.

    The score is RULER's: the fraction of the queried values that the output contains.
    Raises ValueError for invalid settings, and, when an example is made, for a length too short for its needles.
    """

    def __init__(
        self,
        length: int,
        *,
        haystack: str = "text",
        keys: str = "words",
        values: str = "numbers",
        needles: int = 1,
        values_each: int = 1,
        queries: int = 1,
        depth: float | None = None,
        digits: int = 7,
        wording: str = "ruler",
        text: TextBytes | None = None,
        tokenizer: Tokenizer | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(seed=seed)
        one_of("haystack", haystack, ("text", "noise", "needles"))
        one_of("keys", keys, tuple(NAMES))
        one_of("values", values, tuple(NAMES))
        one_of("wording", wording, tuple(WORDINGS))
        if not 1 <= queries <= needles or values_each < 1:
            raise ValueError(
                f"needles={needles}, queries={queries}, values_each={values_each} are not allowed: each must be "
                "at least 1, with no more queries than needles"
            )
        if depth is not None and not 0 <= depth <= 1:
            raise ValueError(f"depth={depth} is not allowed: it must be 0 (first line) to 1 (last), or None")
        self.room, self.wording, self.depth, self.digits = Room(length, tokenizer), WORDINGS[wording], depth, digits
        self.haystack, self.keys, self.values = haystack, keys, values
        self.needles, self.values_each, self.queries = needles, values_each, queries
        self.text = text

    def example(self, index: int) -> Example:
        draw = self.draw(index)
        keys = NAMES[self.keys](draw, self.digits)
        values = keys if self.keys == self.values else NAMES[self.values](draw, self.digits)
        pairs = [(next(keys), [next(values) for _ in range(self.values_each)]) for _ in range(self.needles)]
        depths = self._depths(draw)
        needles = [self._needle(key, value) for key, found in pairs for value in found]
        asked = draw.sample(range(self.queries), self.queries)
        names = [pairs[i][0] for i in asked]
        references = [value for i in asked for value in pairs[i][1]]
        answer = " " + ", ".join(references)

        def prompt(lines: list[str]) -> str:
            return self._prompt(place(lines, zip(depths, needles, strict=True)), names)

        lines = self.room.fill(self._filler(draw, keys, values), lambda lines: prompt(lines) + answer)
        facts = {
            "task": self.name,
            "keys": names,
            "references": references,
            "depths": [depths[i * self.values_each] for i in asked],
        }
        return Example(prompt(lines), answer, facts)

    def score(self, example: Example, output: str) -> float:
        return contained(example.metadata["references"], output)

    def _depths(self, draw: random.Random) -> list[float]:
        """Return the depths of all needles, queried ones first, distinct as long as there are enough."""
        count = self.needles * self.values_each
        grid = [i / (DEPTHS - 1) for i in range(DEPTHS)]
        depths = draw.sample(grid * -(-count // DEPTHS), count)
        if self.depth is not None:
            depths[: self.queries * self.values_each] = [self.depth] * (self.queries * self.values_each)
        for i in range(self.needles):  # a key's values are queried in text order
            own = slice(i * self.values_each, (i + 1) * self.values_each)
            depths[own] = sorted(depths[own])
        return depths

    def _filler(self, draw: random.Random, keys: Iterator[str], values: Iterator[str]) -> Filler:
        if self.haystack == "noise":
            return noise
        if self.haystack == "text":
            return text_lines(self.text, start=draw.random(), without="special magic")
        decoys: list[str] = []

        def more(size: int) -> list[str]:
            while sum(map(len, decoys)) < size:
                decoys.extend(self._needle(next(keys), next(values)) for _ in range(64))
            return list(decoys)

        return more

    def _needle(self, key: str, value: str) -> str:
        return self.wording.needle.format(kind=self.values, key=key, value=value)

    def _prompt(self, lines: list[str], keys: list[str]) -> str:
        asked = keys[0] if len(keys) == 1 else ", ".join(keys[:-1]) + f", and {keys[-1]}"
        opening, question = (part.format(kind=self.values, key=asked) for part in (self.wording[0], self.wording[2]))
        return "\n".join([*([opening] if opening else []), *lines, question])
