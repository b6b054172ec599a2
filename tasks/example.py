"""Base classes of tasks: an example is a prompt and its answer, and a task is an endless seeded stream of examples."""

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

    prompt: the text that a model reads.
    answer: the text with which it must continue, character by character, including a leading space or line break.
    metadata: JSON-serialisable facts about the example; `task` names the generator.
    spans: character ranges of the prompt that are determined by the text before them, as the answer is by the whole
        prompt; they allow learning from more than the answer.
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
    """An endless stream of examples. Example `index` depends only on the settings, the seed, and the index.

    A stream can therefore be resumed anywhere, shared among workers, and reproduced; training and evaluation use
    different seeds.
    """

    def __init__(self, *, seed: int = 0) -> None:
        self.seed = seed

    @property
    def name(self) -> str:
        """The class name in snake case: `MQARText` is "mqar_text"."""
        return re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", type(self).__name__).lower()

    @abstractmethod
    def example(self, index: int) -> Example:
        """Return example number `index`, from 0."""

    def stream(self, start: int = 0, step: int = 1) -> Iterator[Example]:
        """Yield examples start, start + step, and so on: worker w of W uses `stream(w, W)`."""
        return map(self.example, itertools.count(start, step))

    def __iter__(self) -> Iterator[Example]:
        return self.stream()

    def score(self, example: Example, output: str) -> float:
        """Score a model's output from 0 to 1. By default, 1 if it equals the answer, ignoring whitespace."""
        return float(output.split() == example.answer.split())

    def chance(self, example: Example) -> float:
        """Return the expected score of guessing if the form of the answer is known."""
        return 0.0

    def draw(self, index: int) -> random.Random:
        """Return the random generator of an example; it is independent of settings, so that settings are comparable."""
        return random.Random(f"{self.name} {self.seed} {index}")  # strings seed identically on every machine


def contained(references: list[str], output: str) -> float:
    """Return the fraction of `references` that occur in the output, ignoring case (RULER's score).

    Raises ValueError if there are no references or one is empty, because every output contains an empty string.
    """
    if not references or not all(references):
        raise ValueError(f"references={references} are not allowed: there must be at least one, and none may be empty")
    return sum(reference.lower() in output.lower() for reference in references) / len(references)


def one_of(name: str, value: str, allowed: Iterable[str]) -> None:
    """Raise ValueError unless `value` is allowed for the setting `name`."""
    if value not in (allowed := tuple(allowed)):
        raise ValueError(f"{name}={value!r} is not allowed: it must be one of {', '.join(allowed)}")


def require_range(name: str, value: tuple[int, int], *, least: int, most: int | None = None) -> None:
    """Raise ValueError unless `value` is an ordered pair (fewest, most) between `least` and `most`."""
    low, high = value
    if not least <= low <= high or (most is not None and high > most):
        limit = f"{least} to {most}" if most is not None else f"at least {least}"
        raise ValueError(f"{name}={value} is not allowed: it must be two numbers, minimum and maximum, {limit}")


class Mixed(Task):
    """Several tasks in one stream; each example comes from a task drawn by `weights` (equal by default).

    Raises ValueError for no tasks and for weights that do not match them.
    """

    def __init__(self, tasks: list[Task], weights: list[float] | None = None, *, seed: int = 0) -> None:
        super().__init__(seed=seed)
        weights = [1.0] * len(tasks) if weights is None else weights
        if not tasks or len(weights) != len(tasks) or min(weights) < 0 or not sum(weights):
            raise ValueError(
                f"weights={weights} for {len(tasks)} tasks is not allowed: there must be at least one task and one "
                "weight per task, none negative and not all zero"
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
