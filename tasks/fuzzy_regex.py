"""Fuzzy regex parsing: list everything in a text that a pattern matches, as in `re.findall`.

    <PATTERN> [0-9]+
    <TEXT> abc 123 def 456 ghi
    <OUTPUT> 123 456

A fuzzy pattern, in the syntax of the `regex` package, is `(?:lemon){s<=1}`: words of the text that differ from "lemon"
by at most one substituted letter, with no insertions or deletions.
"""

from __future__ import annotations

import random
import re
import string
from collections.abc import Mapping
from types import MappingProxyType

from tasks.example import Example, Task, require_range
from tasks.words import ADJECTIVES, NOUNS

CLASSES: Mapping[str, str] = MappingProxyType(
    {"[0-9]": string.digits, "[a-z]": string.ascii_lowercase, "[A-Z]": string.ascii_uppercase, "[aeiou]": "aeiou"}
)
COUNTS: Mapping[str, tuple[int, int]] = MappingProxyType({"+": (1, 4), "{2}": (2, 2), "{3}": (3, 3), "": (1, 1)})
WORDS = tuple(word for word in ADJECTIVES + NOUNS if len(word) >= 4)


class FuzzyRegex(Task):
    """Texts of `words` words and a pattern of at most `parts` character classes, with at least one match.

    words: fewest and most. fuzzy: fraction of patterns that are fuzzy words, 0 to 1. errors: maximum number of
    substituted letters in those.
    Raises ValueError for numbers out of range.
    """

    def __init__(
        self,
        *,
        words: tuple[int, int] = (4, 10),
        parts: int = 2,
        fuzzy: float = 0.25,
        errors: int = 1,
        seed: int = 0,
    ) -> None:
        super().__init__(seed=seed)
        require_range("words", words, least=1)
        if parts < 1 or not 0 <= fuzzy <= 1 or not 0 <= errors <= 3:
            raise ValueError(
                f"parts={parts}, fuzzy={fuzzy}, errors={errors} are not allowed: parts must be "
                "at least 1, fuzzy from 0 to 1, errors from 0 to 3"
            )
        self.words, self.parts, self.fuzzy, self.errors = words, parts, fuzzy, errors

    def example(self, index: int) -> Example:
        draw = self.draw(index)
        make = self._near if draw.random() < self.fuzzy else self._plain
        count = draw.randint(*self.words)
        while True:
            pattern, text, found = make(draw, count)
            if found:
                break
        facts = {"task": self.name, "pattern": pattern, "matches": len(found)}
        return Example(f"<PATTERN> {pattern}\n<TEXT> {text}\n<OUTPUT>", "".join(f" {match}" for match in found), facts)

    def _plain(self, draw: random.Random, count: int) -> tuple[str, str, list[str]]:
        """Make a pattern, a text in which about half the words are made to match it, and the matches."""
        classes = list(CLASSES)
        parts = [(draw.choice(classes), draw.choice(tuple(COUNTS))) for _ in range(draw.randint(1, self.parts))]
        others = [[(draw.choice(classes), draw.choice(tuple(COUNTS))) for _ in range(2)] for _ in range(count)]
        text = " ".join(_matching(draw, parts if draw.random() < 0.5 else other) for other in others)
        pattern = "".join(name + times for name, times in parts)
        return pattern, text, re.findall(pattern, text)

    def _near(self, draw: random.Random, count: int) -> tuple[str, str, list[str]]:
        """Make a fuzzy word, a text in which about half the words are changed copies of it, and the matches."""
        word = draw.choice(WORDS)
        words = [
            _changed(draw, word, draw.randint(0, self.errors + 1)) if draw.random() < 0.5 else draw.choice(WORDS)
            for _ in range(count)
        ]
        found = [other for other in words if len(other) == len(word) and _differing(word, other) <= self.errors]
        return f"(?:{word}){{s<={self.errors}}}", " ".join(words), found


def _matching(draw: random.Random, parts: list[tuple[str, str]]) -> str:
    """Make a word that the parts match from end to end."""
    return "".join("".join(draw.choices(CLASSES[name], k=draw.randint(*COUNTS[times]))) for name, times in parts)


def _changed(draw: random.Random, word: str, letters: int) -> str:
    places = set(draw.sample(range(len(word)), letters))
    return "".join(draw.choice(string.ascii_lowercase) if i in places else letter for i, letter in enumerate(word))


def _differing(first: str, second: str) -> int:
    return sum(a != b for a, b in zip(first, second, strict=True))
