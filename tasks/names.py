"""Streams of distinct names and numbers for tasks."""

from __future__ import annotations

import random
import string
import uuid
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType

from tasks.words import ADJECTIVES, NOUNS


def distinct(draw: random.Random, low: int, high: int) -> Iterator[int]:
    """Yield distinct numbers from low to high - 1. Raises ValueError when they run out."""
    seen: set[int] = set()
    while len(seen) < high - low:
        if (number := draw.randrange(low, high)) not in seen:
            seen.add(number)
            yield number
    raise ValueError(f"this prompt is not possible: it needs more than the {high - low} different names available")


def letters(draw: random.Random, width: int, alphabet: str = string.ascii_uppercase) -> Iterator[str]:
    """Yield distinct strings of `width` letters. Raises ValueError when they run out."""
    base = len(alphabet)
    for number in distinct(draw, 0, base**width):
        yield "".join(alphabet[number // base**i % base] for i in range(width))


def _words(draw: random.Random, digits: int) -> Iterator[str]:
    for pair in distinct(draw, 0, len(ADJECTIVES) * len(NOUNS)):
        yield f"{ADJECTIVES[pair // len(NOUNS)]}-{NOUNS[pair % len(NOUNS)]}"


def _numbers(draw: random.Random, digits: int) -> Iterator[str]:
    return map(str, distinct(draw, 10 ** (digits - 1), 10**digits))


def _uuids(draw: random.Random, digits: int) -> Iterator[str]:
    while True:
        yield str(uuid.UUID(int=draw.getrandbits(128), version=4))


NAMES: Mapping[str, Callable[[random.Random, int], Iterator[str]]] = MappingProxyType(
    {"words": _words, "numbers": _numbers, "uuids": _uuids}
)
"""Kinds of names by name; the number is how many digits "numbers" have."""
