"""ListOps: compute the value of a nested expression such as [MAX 4 3 [MIN 2 3 ] 1 0 ].

Nangia and Bowman 2018, https://arxiv.org/abs/1804.06028, with the lengths and distribution of Long Range Arena (Tay et
al. 2020, https://arxiv.org/abs/2011.04006): below `max_depth`, a node is an operator with probability 1/4, otherwise a
digit; an operator has 2 to `max_args` arguments; trees are drawn until one has more than `min_length` and fewer than
`max_length` tokens, where an operator and its closing bracket count as two.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from tasks.example import Example, Task

OPERATOR_SHARE = 0.25
TRIES = 100_000  # maximum number of trees drawn per example

OPERATORS: Mapping[str, Callable[[list[int]], int]] = MappingProxyType(
    {
        "MIN": min,
        "MAX": max,
        "MED": lambda values: int(statistics.median(values)),  # an even count rounds the middle mean down
        "SM": lambda values: sum(values) % 10,
    }
)

Tree = int | tuple[str, list[Any]]
"""A digit, or an operator and its arguments, trees again."""


class ListOps(Task):
    """Expressions of more than `min_length` and fewer than `max_length` tokens, with values from 0 to 9.

    Tokens are separated by spaces: operators with their opening bracket, digits, and closing brackets.
    Raises ValueError if none of 100,000 trees has such a length.
    """

    def __init__(
        self, *, max_depth: int = 10, max_args: int = 10, min_length: int = 500, max_length: int = 2000, seed: int = 0
    ) -> None:
        super().__init__(seed=seed)
        if max_depth < 1 or max_args < 2 or max_length - min_length < 2:
            raise ValueError(
                f"max_depth={max_depth}, max_args={max_args}, min_length={min_length}, max_length={max_length} are not "
                "allowed: max_depth must be at least 1, max_args 2 and max_length min_length + 2"
            )
        self.max_depth, self.max_args, self.min_length, self.max_length = max_depth, max_args, min_length, max_length

    def example(self, index: int) -> Example:
        draw = self.draw(index)
        for _ in range(TRIES):
            tree, length = self._tree(draw, 1, self.max_length)
            if self.min_length < length < self.max_length:
                facts = {"task": self.name, "length": length, "depth": depth(tree)}
                return Example(f"{source(tree)} =", f" {value(tree)}", facts)
        raise ValueError(
            f"min_length={self.min_length}, max_length={self.max_length} are not allowed: none of {TRIES} trees with "
            f"max_depth={self.max_depth}, max_args={self.max_args} has such a length"
        )

    def chance(self, example: Example) -> float:
        return 0.1

    def _tree(self, draw: random.Random, at_depth: int, room: int) -> tuple[Tree, int]:
        """Draw a tree and its length; one that outgrows `room` is left unfinished, because it will be discarded."""
        if at_depth >= self.max_depth or draw.random() > OPERATOR_SHARE:
            return draw.randrange(10), 1
        arguments, length = [], 2
        for _ in range(draw.randint(2, self.max_args)):
            if length >= room:
                break
            argument, size = self._tree(draw, at_depth + 1, room - length)
            arguments.append(argument)
            length += size
        return (draw.choice(tuple(OPERATORS)), arguments), length


def source(tree: Tree) -> str:
    """Return the expression as text, with tokens separated by spaces."""
    if isinstance(tree, int):
        return str(tree)
    return " ".join([f"[{tree[0]}", *map(source, tree[1]), "]"])


def value(tree: Tree) -> int:
    """Evaluate the expression."""
    return tree if isinstance(tree, int) else OPERATORS[tree[0]](list(map(value, tree[1])))


def depth(tree: Tree) -> int:
    """Return the number of levels; a single digit has one."""
    return 1 if isinstance(tree, int) else 1 + max(map(depth, tree[1]))
