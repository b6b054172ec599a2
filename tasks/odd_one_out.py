"""Odd one out: find the one item that differs from all others in some property.

    <ITEMS> 2 4 6 8 7 10 12
    <OUTPUT> 7

The properties are a closed list (`NUMBER_KEYS`, `WORD_KEYS`). In every example, one property singles out exactly one
item, and no other property in the list singles out a different one, so the answer does not depend on which is tried.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Mapping
from functools import cache
from types import MappingProxyType

from tasks.example import Example, Task, require_range
from tasks.words import ADJECTIVES, NOUNS

Keys = Mapping[str, Callable[[str], object]]

NUMBER_KEYS: Keys = MappingProxyType(
    {
        "parity": lambda item: int(item) % 2,
        "multiple of 3": lambda item: int(item) % 3 == 0,
        "multiple of 5": lambda item: int(item) % 5 == 0,
        "digits": len,
        "palindrome": lambda item: item == item[::-1],
    }
)
WORD_KEYS: Keys = MappingProxyType(
    {
        "length": len,
        "initial": lambda item: item[0],
        "ending": lambda item: item[-1],
        "double letter": lambda item: any(first == second for first, second in itertools.pairwise(item)),
    }
)
KEYS: Mapping[str, Keys] = MappingProxyType({"numbers": NUMBER_KEYS, "words": WORD_KEYS})
WORDS = ADJECTIVES + NOUNS


class OddOneOut(Task):
    """Prompts with `items` distinct items, of which one is odd by one of `keys`, and no other item by any key.

    items: fewest and most, 4 to 20. kind: "numbers" (from 1 to `highest`) or "words". keys: the properties by which the
    odd one is chosen; None: any of the kind's. The score is 1 for the odd one; guessing gives 1 / items.
    Raises ValueError for unknown kinds or keys, and for too few or too many items.
    """

    def __init__(
        self,
        *,
        items: tuple[int, int] = (5, 9),
        kind: str = "numbers",
        keys: tuple[str, ...] | None = None,
        highest: int = 999,
        seed: int = 0,
    ) -> None:
        super().__init__(seed=seed)
        require_range("items", items, least=4, most=20)
        require_range("highest", (highest, highest), least=99, most=99_999)
        if kind not in KEYS or not set(keys or ()) <= set(KEYS[kind]):
            allowed = {name: ", ".join(known) for name, known in KEYS.items()}
            raise ValueError(f"kind={kind!r}, keys={keys} are not allowed: allowed kinds and keys are {allowed}")
        self.items, self.kind, self.keys, self.highest = items, kind, keys or tuple(KEYS[kind]), highest

    def example(self, index: int) -> Example:
        draw = self.draw(index)
        key, count = draw.choice(self.keys), draw.randint(*self.items)
        groups = _groups(self.kind, key, self.highest)
        large = [group for group in groups if len(group) >= count - 1]
        while True:
            group = draw.choice(large)
            odd = draw.choice(draw.choice([other for other in groups if other is not group]))
            items = [odd, *draw.sample(group, count - 1)]
            if set(odd_ones(items, KEYS[self.kind])) == {odd}:
                break
        draw.shuffle(items)
        facts = {"task": self.name, "key": key, "items": count, "place": items.index(odd)}
        return Example(f"<ITEMS> {' '.join(items)}\n<OUTPUT>", f" {odd}", facts)

    def chance(self, example: Example) -> float:
        return 1 / example.metadata["items"]


def odd_ones(items: list[str], keys: Keys) -> list[str]:
    """Return the item that each key singles out, for the keys that do."""
    found = []
    for key in keys.values():
        values = Counter(map(key, items))
        if sorted(values.values()) == [1, len(items) - 1]:
            found += [item for item in items if values[key(item)] == 1]
    return found


@cache
def _groups(kind: str, key: str, highest: int) -> list[list[str]]:
    """Group all items of a kind by the value of the key."""
    groups: dict[object, list[str]] = {}
    for item in WORDS if kind == "words" else map(str, range(1, highest + 1)):
        groups.setdefault(KEYS[kind][key](item), []).append(item)
    return list(groups.values())
