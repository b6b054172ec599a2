"""New York: name the adjective before the n-th "New York", which needs counting and reading at a chosen distance.

Sentences such as "The radiant New York slept." are placed among lines of filler, with decoys that give adjectives to
other cities. No two sentences of a prompt share an adjective, no other line mentions New York, and every mention has an
adjective, so there is exactly one answer.

    for example in NewYork(1024, nth=2, distance=600): ...
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from tasks.example import Example, Task, one_of
from tasks.haystack import Room, last_that, place, text_lines
from tasks.words import ADJECTIVES, CITIES

if TYPE_CHECKING:
    from tasks.text import TextBytes
    from tasks.tokenizer import Tokenizer

SENTENCES = (
    "The {} {} slept.",
    "They came to the {} {} by night.",
    "She wrote about the {} {} again.",
    "We left the {} {} in spring.",
    "He dreamt of the {} {} for years.",
)
QUESTIONS: Mapping[str, str] = MappingProxyType(
    {
        "full": "Question: in the text above, which adjective stands right before mention number {} of New York? "
        "Answer with this one word.\nAnswer:",
        "short": "Adjective before New York, mention {}:",
    }
)


class NewYork(Task):
    """Prompts of at most `length` tokens with `mentions` of New York, of which the `nth` is queried, and `decoys`.

    length: of prompt, answer, bos, and eos, in tokens of `tokenizer` (default: bytes). Whole lines of `text` (default:
        the standard library's source) take the remaining space.
    nth: 1 for the first mention. mentions: at least nth; None: nth + 1, so that the last is not always queried.
    distance: tokens from the end of the queried mention to the answer: at least this, and as close to it as whole lines
        allow; None: anywhere. The metadata's `distance` is the actual value.
    wording: of the question, "full", or "short" for small models.

    The score is 1 if the output's first word is the adjective and the output contains no other adjective of the task:
    naming several does not count.
    Raises ValueError for invalid settings, and, when an example is made, for a length too short for its sentences or
    for the distance.
    """

    def __init__(
        self,
        length: int,
        *,
        nth: int = 2,
        mentions: int | None = None,
        decoys: int = 2,
        distance: int | None = None,
        wording: str = "full",
        text: TextBytes | None = None,
        tokenizer: Tokenizer | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(seed=seed)
        mentions = nth + 1 if mentions is None else mentions
        if not 1 <= nth <= mentions or decoys < 0 or mentions + decoys > len(ADJECTIVES):
            raise ValueError(
                f"nth={nth}, mentions={mentions}, decoys={decoys} are not allowed: nth must be 1 to mentions, and "
                f"mentions and decoys together at most {len(ADJECTIVES)}, the number of adjectives"
            )
        if distance is not None and not 0 <= distance < length:
            raise ValueError(f"distance={distance} is not allowed: it must be 0 to length={length}, or None")
        one_of("wording", wording, QUESTIONS)
        self.room, self.text, self.question = Room(length, tokenizer), text, QUESTIONS[wording]
        self.nth, self.mentions, self.decoys, self.distance = nth, mentions, decoys, distance

    def example(self, index: int) -> Example:
        draw = self.draw(index)
        adjectives = draw.sample(ADJECTIVES, self.mentions + self.decoys)
        mentions = [_sentence(draw, adjective, "New York") for adjective in adjectives[: self.mentions]]
        decoys = [_sentence(draw, adjective, draw.choice(CITIES)) for adjective in adjectives[self.mentions :]]
        early = draw.randint(0, self.decoys)
        parts = _Parts(
            before=_strewn(draw, mentions[: self.nth - 1], decoys[:early]),
            asked=mentions[self.nth - 1],
            after=_strewn(draw, mentions[self.nth :], decoys[early:]),
            question=self.question.format(self.nth),
        )
        answer = " " + adjectives[self.nth - 1]
        where, filler = (
            draw.random(),
            text_lines(self.text, start=draw.random(), without=r"(?i:new\s*york)|New$|^\s*York"),
        )
        lines = self.room.fill(filler, lambda lines: parts.prompt(lines, 0) + answer)
        while True:  # moving lines can change the token count slightly, except with bytes
            split = round(where * len(lines)) if self.distance is None else self._split(parts, lines, self.distance)
            prompt = parts.prompt(lines, split)
            if self.room.holds(prompt + answer):
                break
            lines = lines[:-1]
        facts = {"task": self.name, "nth": self.nth, "mentions": self.mentions}
        facts["distance"] = self.room.tokenizer.count(parts.behind(lines[split:]))
        return Example(prompt, answer, facts)

    def score(self, example: Example, output: str) -> float:
        words, answer = re.findall(r"\w+", output.lower()), example.answer.strip()
        return float(words[:1] == [answer] and set(words) & set(ADJECTIVES) == {answer})

    def _split(self, parts: _Parts, lines: list[str], distance: int) -> int:
        """Return the last line before which the queried mention is `distance` or more tokens from the answer."""

        def far(split: int) -> bool:
            return self.room.tokenizer.count(parts.behind(lines[split:])) >= distance

        if not far(0):
            raise ValueError(
                f"distance={distance} is not allowed: with length={self.room.length} it is at most "
                f"{self.room.tokenizer.count(parts.behind(lines))} in this example"
            )
        return len(lines) if far(len(lines)) else last_that(far, len(lines))


@dataclass(frozen=True)
class _Parts:
    """Everything except filler: sentences with their depths before and after the queried one."""

    before: list[tuple[float, str]]
    asked: str
    after: list[tuple[float, str]]
    question: str

    def prompt(self, lines: list[str], split: int) -> str:
        """Build the prompt with `split` lines of filler before the queried mention."""
        end = self.asked.index("New York") + len("New York")
        return "\n".join([*place(lines[:split], self.before), self.asked[:end]]) + self.behind(lines[split:])

    def behind(self, lines: list[str]) -> str:
        """Return the text between the queried mention and the answer."""
        end = self.asked.index("New York") + len("New York")
        return "\n".join([self.asked[end:], *place(lines, self.after), self.question])


def _sentence(draw: random.Random, adjective: str, city: str) -> str:
    return draw.choice(SENTENCES).format(adjective, city)


def _strewn(draw: random.Random, mentions: list[str], decoys: list[str]) -> list[tuple[float, str]]:
    """Assign random depths to sentences; mentions keep their order."""
    depths = sorted(draw.random() for _ in mentions)
    return [*zip(depths, mentions, strict=True), *((draw.random(), decoy) for decoy in decoys)]
