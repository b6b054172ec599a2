"""Variable tracking, as in RULER: find the variables that hold a value, through a chain of assignments.

Hsieh et al. 2024, RULER, https://arxiv.org/abs/2404.06654, task `vt`. A chain begins with `VAR ABCDE = 12345` and
continues with `VAR FGHIJ = VAR ABCDE`; its lines are in this order, anywhere in the text. Further chains, with other
values, are decoys. All names and values of a prompt are distinct, including those of the worked example.

    for example in VariableTracking(4096, chains=3, hops=4): ...
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

from tasks.example import Example, Task, contained, one_of
from tasks.haystack import Room, noise, place, text_lines
from tasks.names import NAMES, letters

if TYPE_CHECKING:
    from tasks.text import TextBytes
    from tasks.tokenizer import Tokenizer

SHOT_LINES = 5  # lines of filler in the worked example

WORDINGS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "ruler": (
            "Memorize and track the chain(s) of variable assignment hidden in the following text.\n",
            "Question: Find all variables that are assigned the value {value} in the text above. "
            "Answer: According to the chain(s) of variable assignment in the text above, {count} variables are "
            "assigned the value {value}, they are:",
        ),
        "short": ("", "Variables that are {value}:"),
    }
)


class VariableTracking(Task):
    """Prompts of at most `length` tokens with `chains` chains of 1 + `hops` variables, of which one is queried.

    length: of prompt, answer, bos, and eos, in tokens of `tokenizer` (default: bytes). Whole lines of filler take the
        remaining space.
    haystack: "noise" (RULER's five sentences, repeated) or "text" (lines of `text`; default: the standard library).
    shot: whether to put a short worked example before the question, as in RULER.
    wording: "ruler", or "short" for small models.

    The answer names the queried chain's variables from first to last. The score is RULER's: the fraction of them that
    the output contains.
    Raises ValueError for invalid settings, and, when an example is made, for a length too short for its chains.
    """

    def __init__(
        self,
        length: int,
        *,
        chains: int = 1,
        hops: int = 4,
        haystack: str = "noise",
        shot: bool = True,
        wording: str = "ruler",
        text: TextBytes | None = None,
        tokenizer: Tokenizer | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(seed=seed)
        if chains < 1 or hops < 0:
            raise ValueError(
                f"chains={chains}, hops={hops} are not allowed: there must be at least one chain, and hops must be at "
                "least 0"
            )
        one_of("haystack", haystack, ("noise", "text"))
        one_of("wording", wording, tuple(WORDINGS))
        self.room, self.chains, self.hops, self.shot = Room(length, tokenizer), chains, hops, shot
        self.haystack, self.text = haystack, text
        self.opening, self.question = WORDINGS[wording]

    def example(self, index: int) -> Example:
        draw = self.draw(index)
        names, values = letters(draw, 5), NAMES["numbers"](draw, 5)
        shot = self._shot(draw, names, values) if self.shot else ""
        inserts, asked, value = self._chains(draw, names, values)
        filler = noise if self.haystack == "noise" else text_lines(self.text, start=draw.random(), without=r"VAR\b")
        answer = " " + " ".join(asked)

        def prompt(lines: list[str]) -> str:
            return shot + self._prompt(place(lines, inserts), value)

        lines = self.room.fill(filler, lambda lines: prompt(lines) + answer)
        facts = {
            "task": self.name,
            "value": value,
            "references": asked,
            "depths": [depth for depth, _ in inserts[: self.hops + 1]],
        }
        return Example(prompt(lines), answer, facts)

    def score(self, example: Example, output: str) -> float:
        return contained(example.metadata["references"], output)

    def _chains(
        self, draw: random.Random, names: Iterator[str], values: Iterator[str]
    ) -> tuple[list[tuple[float, str]], list[str], str]:
        """Return lines with their depths, the variables of the queried chain, and its value."""
        inserts: list[tuple[float, str]] = []
        found: list[tuple[list[str], str]] = []
        for value in (next(values) for _ in range(self.chains)):
            chain = [next(names) for _ in range(self.hops + 1)]
            lines = [f"VAR {name} = {source}" for name, source in zip(chain, [value, *_read(chain)], strict=False)]
            inserts += zip(sorted(draw.random() for _ in lines), lines, strict=True)
            found.append((chain, value))
        asked, value = found[0]
        return inserts, asked, value

    def _shot(self, draw: random.Random, names: Iterator[str], values: Iterator[str]) -> str:
        inserts, asked, value = self._chains(draw, names, values)
        lines = place(noise(0) * SHOT_LINES, inserts)
        return f"{self._prompt(lines, value)} {' '.join(asked)}\n\n"

    def _prompt(self, lines: list[str], value: str) -> str:
        question = self.question.format(value=value, count=self.hops + 1)
        return "\n".join([*([self.opening] if self.opening else []), *lines, question])


def _read(chain: list[str]) -> list[str]:
    return [f"VAR {name}" for name in chain]
