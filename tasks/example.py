"""What every task is made of: a prompt, its answer, and an endless seeded supply of such pairs."""

from __future__ import annotations

import itertools
import random
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Example:
    """A prompt and the answer that follows from it alone.

    prompt: text that a model reads.
    answer: text that it must continue with, character by character, its leading space or line break included.
    metadata: facts about the example that JSON can hold; `task` names the generator.
    spans: ranges of the prompt's characters which what stands before them determines, as the answer is determined
        by the whole prompt; to learn from more than the answer.
    """

    prompt: str
    answer: str
    metadata: dict[str, Any] = field(default_factory=dict)
    spans: tuple[tuple[int, int], ...] = ()

    @property
    def text(self) -> str:
        """Prompt and answer as one text."""
        return self.prompt + self.answer


class Task(ABC):
    """Examples without end. Example `index` depends on the settings, the seed and the index, and on nothing else.

    So a stream can be resumed anywhere, shared among workers, and drawn twice alike; training and evaluation take
    different seeds.
    """

    def __init__(self, *, seed: int = 0) -> None:
        self.seed = seed

    @property
    def name(self) -> str:
        """The class in lower case: `MQARText` is "mqar_text"."""
        return re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", type(self).__name__).lower()

    @abstractmethod
    def example(self, index: int) -> Example:
        """Example number `index`, from 0."""

    def stream(self, start: int = 0, step: int = 1) -> Iterator[Example]:
        """Examples start, start + step, and so on: worker w of W takes `stream(w, W)`."""
        return map(self.example, itertools.count(start, step))

    def __iter__(self) -> Iterator[Example]:
        return self.stream()

    def score(self, example: Example, output: str) -> float:
        """How right a model's output is, from 0 to 1. Here: equal to the answer, white space apart."""
        return float(output.split() == example.answer.split())

    def chance(self, example: Example) -> float:
        """The score that guessing reaches on average, for who knows the form of the answer."""
        return 0.0

    def draw(self, index: int) -> random.Random:
        """The source of an example's random choices; it depends on no setting, so that settings can be compared."""
        return random.Random(f"{self.name} {self.seed} {index}")  # text is hashed: alike on every machine


def contained(references: list[str], output: str) -> float:
    """The fraction of `references` that occur in the output, upper and lower case alike (RULER's score).

    Raises ValueError for no references and for an empty one, which every output contains.
    """
    if not references or not all(references):
        raise ValueError(f"references={references} are not allowed: there must be at least one, and none empty")
    return sum(reference.lower() in output.lower() for reference in references) / len(references)


def one_of(name: str, value: str, allowed: Iterable[str]) -> None:
    """Raises ValueError unless `value` is one of those allowed for the setting `name`."""
    if value not in (allowed := tuple(allowed)):
        raise ValueError(f"{name}={value!r} is not allowed: it must be one of {', '.join(allowed)}")


def require_range(name: str, value: tuple[int, int], *, least: int, most: int | None = None) -> None:
    """Raises ValueError unless `value` is a pair of numbers, fewest and most, within `least` and `most`."""
    low, high = value
    if not least <= low <= high or (most is not None and high > most):
        limit = f"{least} to {most}" if most is not None else f"at least {least}"
        raise ValueError(f"{name}={value} is not allowed: it must be two numbers, fewest and most, {limit}")


class Mixed(Task):
    """Several tasks in one stream, each example of one drawn by `weights` (equal by default).

    Raises ValueError for no tasks and for weights that do not fit them.
    """

    def __init__(self, tasks: list[Task], weights: list[float] | None = None, *, seed: int = 0) -> None:
        super().__init__(seed=seed)
        weights = [1.0] * len(tasks) if weights is None else weights
        if not tasks or len(weights) != len(tasks) or min(weights) < 0 or not sum(weights):
            raise ValueError(
                f"weights={weights} for {len(tasks)} tasks is not allowed: there must be at least one task and one "
                "weight for each, none negative and not all zero"
            )
        self.tasks, self.weights = tasks, weights

    def example(self, index: int) -> Example:
        (which,) = self.draw(index).choices(range(len(self.tasks)), self.weights)
        drawn = self.tasks[which].example(index)
        return Example(drawn.prompt, drawn.answer, {**drawn.metadata, "part": which}, drawn.spans)

    def score(self, example: Example, output: str) -> float:
        return self.tasks[example.metadata["part"]].score(example, output)

    def chance(self, example: Example) -> float:
        return self.tasks[example.metadata["part"]].chance(example)
