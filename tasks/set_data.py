"""Set of data: sort items into buckets with a hash function.

    <SET_DATA> 12345 67.89 abc123 (45,67)
    <HASH_FUNC> MOD_5
    <OUTPUT>
    B0: 12345
    B1:
    B2: 67.89 (45,67)
    B3: abc123
    B4:

MOD_m is an item's number modulo m, LEN_m its number of characters modulo m. The number of an integer is itself; of a
decimal, its integer part; of letters and digits, the digits; of a pair, the sum.
"""

from __future__ import annotations

import random
import re
import string

from tasks.example import Example, Task, require_range

KINDS = ("integer", "decimal", "word", "pair")


class SetData(Task):
    """Prompts with `items` items of `kinds`, and one of `functions`; the answer lists every bucket, items in order.

    items: fewest and most. functions: names such as "MOD_5" or "LEN_3". digits: maximum digits of an integer.
    The score is the fraction of correct buckets, among those that are not empty in the answer or the output.
    Raises ValueError for unknown kinds or functions, and for no items.
    """

    def __init__(
        self,
        *,
        items: tuple[int, int] = (4, 12),
        functions: tuple[str, ...] = ("MOD_2", "MOD_5", "MOD_10"),
        kinds: tuple[str, ...] = KINDS,
        digits: int = 5,
        seed: int = 0,
    ) -> None:
        super().__init__(seed=seed)
        require_range("items", items, least=1)
        require_range("digits", (digits, digits), least=1, most=18)
        wrong = [name for name in functions if not re.fullmatch(r"(MOD|LEN)_[1-9]\d*", name)]
        if wrong or not functions or not kinds or set(kinds) - set(KINDS):
            raise ValueError(
                f"functions={functions}, kinds={kinds} are not allowed: functions are MOD_m or LEN_m with m from 1, "
                f"kinds are of {', '.join(KINDS)}; at least one of each"
            )
        self.items, self.functions, self.kinds, self.digits = items, functions, kinds, digits

    def example(self, index: int) -> Example:
        draw = self.draw(index)
        items = [_item(draw, draw.choice(self.kinds), self.digits) for _ in range(draw.randint(*self.items))]
        function = draw.choice(self.functions)
        prompt = f"<SET_DATA> {' '.join(items)}\n<HASH_FUNC> {function}\n<OUTPUT>"
        buckets = [[item for item in items if bucket(item, function) == b] for b in range(int(function[4:]))]
        answer = "".join(f"\nB{b}:{''.join(f' {item}' for item in found)}" for b, found in enumerate(buckets))
        return Example(prompt, answer, {"task": self.name, "function": function, "items": len(items)})

    def score(self, example: Example, output: str) -> float:
        wanted, found = _buckets(example.answer), _buckets(output)
        return sum(found.get(name) == wanted.get(name) for name in wanted | found) / len(wanted | found)

    def chance(self, example: Example) -> float:
        """Expected fraction of the answer's buckets that are correct if every item gets a random bucket."""
        modulus, items = int(example.metadata["function"][4:]), example.metadata["items"]
        sizes = [len(found) for found in _buckets(example.answer).values()]
        return sum((modulus - 1) ** (items - size) / modulus**items for size in sizes) / len(sizes)


def number(item: str) -> int:
    """Return the number that an item represents."""
    if item.startswith("("):
        return sum(map(int, item.strip("()").split(",")))
    return int(item.split(".")[0].lstrip(string.ascii_lowercase))


def bucket(item: str, function: str) -> int:
    """Return the bucket of an item; `function` is MOD_m or LEN_m."""
    kind, modulus = function.split("_")
    return (number(item) if kind == "MOD" else len(item)) % int(modulus)


def _item(draw: random.Random, kind: str, digits: int) -> str:
    if kind == "integer":
        return str(draw.randrange(10 ** draw.randint(1, digits)))
    if kind == "decimal":
        return f"{draw.randrange(100)}.{draw.randrange(100):02}"
    if kind == "word":
        return "".join(draw.choices(string.ascii_lowercase, k=3)) + f"{draw.randrange(1000):03}"
    return f"({draw.randrange(100)},{draw.randrange(100)})"


def _buckets(text: str) -> dict[str, list[str]]:
    """Parse the non-empty buckets of an answer; other lines are skipped."""
    lines = re.findall(r"^(B\d+):[^\S\n]*(\S.*)$", text, re.MULTILINE)
    return {name: items.split() for name, items in lines}
