"""Builds long texts with something to find: lines of filler, as many as fit a given length."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import TYPE_CHECKING

from tasks.byte_tokenizer import ByteTokenizer
from tasks.encoding import SPECIAL
from tasks.text import TextBytes

if TYPE_CHECKING:
    from tasks.tokenizer import Tokenizer

NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."  # RULER's
LONGEST_LINE = 120  # characters; longer lines are split, so that inserts can go anywhere

Filler = Callable[[int], list[str]]
"""Lines of about so many bytes; a greater size gives the same lines and more of them."""


def noise(size: int) -> list[str]:
    """Repeat RULER's five sentences."""
    return [NOISE] * (size // (len(NOISE) + 1) + 1)


def text_lines(text: TextBytes | None = None, *, start: float, without: str) -> Filler:
    """Return a filler of whole lines of `text` (default: the standard library), read as a ring from fraction `start`.

    Lines that match the regular expression `without` are left out, so that no prompt has two answers.
    """
    unwanted = re.compile(without)

    def lines(size: int) -> list[str]:
        source = _library() if text is None else text
        size = min(size + 2 * LONGEST_LINE, len(source))
        begin = int(start * len(source))
        before = min(size, len(source) - begin)
        parts = [source.tokens(before, start=begin), source.tokens(size - before)]
        found = split_lines(b"".join(bytes(part.tolist()) for part in parts))
        return [line for line in found[1:-1] if not unwanted.search(line)]

    return lines


def ring(lines: Sequence[str], start: float) -> Filler:
    """Return a filler that reads the lines as a ring from the fraction `start`, each line once."""
    begin = int(start * len(lines))
    turned = [*lines[begin:], *lines[:begin]]

    def more(size: int) -> list[str]:
        sizes = itertools.accumulate(map(len, turned))
        return turned[: 1 + sum(1 for _ in itertools.takewhile(lambda total: total < size, sizes))]

    return more


def split_lines(content: bytes) -> list[str]:
    """Split text into lines, and long lines at spaces; invalid UTF-8 is dropped."""
    return [piece for line in content.decode("utf-8", errors="ignore").split("\n") for piece in _cut(line)]


@cache
def _library() -> TextBytes:
    return TextBytes()


def place(lines: list[str], inserts: Iterable[tuple[float, str]]) -> list[str]:
    """Insert texts into `lines` by depth: 0 before the first line, 1 after the last; equal depths keep their order."""
    placed = sorted((round(depth * len(lines)), order, text) for order, (depth, text) in enumerate(inserts))
    whole, end = [], 0
    for position, _, text in placed:
        whole += [*lines[end:position], text]
        end = position
    return whole + lines[end:]


class Room:
    """How much text fits into `length` tokens of prompt and answer, including bos and eos."""

    def __init__(self, length: int, tokenizer: Tokenizer | None = None) -> None:
        self.length = length
        self.tokenizer = ByteTokenizer() if tokenizer is None else tokenizer

    def holds(self, text: str) -> bool:
        """Whether the text, prompt and answer, fits."""
        return self.tokenizer.count(text) + SPECIAL <= self.length

    def fill(self, filler: Filler, build: Callable[[list[str]], str]) -> list[str]:
        """Return as many filler lines as fit; `build(lines)` returns prompt and answer as one text.

        Raises ValueError if even `build([])` does not fit, or if there is not enough filler.
        """
        if not self.holds(build([])):
            least = self.tokenizer.count(build([])) + SPECIAL
            raise ValueError(f"length={self.length} is not allowed: this example needs at least {least} tokens")
        size, lines = self.length, filler(self.length)
        while self.holds(build(lines)):
            size, before, lines = 2 * size, len(lines), filler(2 * size)
            if len(lines) == before:
                raise ValueError(f"length={self.length} is not allowed: there are only {before} lines of filler text")
        return lines[: last_that(lambda count: self.holds(build(lines[:count])), len(lines))]


def last_that(holds: Callable[[int], bool], count: int) -> int:
    """Return the largest number for which `holds` is true, by bisection; true for 0 and false for `count`."""
    low, high = 0, count
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


def _cut(line: str) -> list[str]:
    """Split a line into pieces of at most LONGEST_LINE characters, at spaces if there are any."""
    if len(line) <= LONGEST_LINE:
        return [line]
    return re.findall(rf"\S.{{0,{LONGEST_LINE - 2}}}(?=\s|$)|\S{{1,{LONGEST_LINE}}}", line)
