"""What can be measured. A subject sets a case up; the trial that it gives is called, timed and checked.

`attention`, `accuracy` and `component` have names; any other is `package.module:Class`, built without arguments.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from harness.names import import_path
from harness.references import Store
from harness.rows import Case

# By path, so that reading this table imports none of them.
SUBJECTS: dict[str, str] = {
    "attention": "harness.attention_subject:AttentionSubject",
    "accuracy": "harness.attention_subject:AccuracySubject",
    "component": "harness.components:ComponentSubject",
}


class Unsupported(Exception):  # noqa: N818, it is no error
    """Raised by `Subject.setup` where a case cannot run; the message is the reason, one plain sentence."""


@dataclass(frozen=True)
class Finding:
    """What a check found: metrics by name, and why the answer is wrong, empty if it is not."""

    metrics: dict[str, float] = field(default_factory=dict)
    wrong: str = ""


@dataclass(frozen=True)
class Facts:
    """What is known of a case without a clock: fields of its row, None where unknown.

    `flops` and `moved_bytes` belong to one call; the latter is what must at least be read and written.
    """

    kernel: str = ""
    flops: float | None = None
    moved_bytes: float = 0.0
    output_bytes: float | None = None
    state_bytes: float | None = None
    comparisons: float | None = None
    comparisons_bound: float | None = None
    prepare_s: float | None = None


class Trial(ABC):
    """One case, ready to run. `tokens` is what one call handles; `timed` whether its time means anything."""

    tokens: int
    timed: bool = True
    device: torch.device = torch.device("cpu")

    @abstractmethod
    def call(self, variant: int) -> Any:
        """What is timed, on one of two sets of inputs, 0 or 1, that alternate."""

    @abstractmethod
    def check(self, variant: int, answer: Any) -> Finding:
        """Whether the latest call's answer is right, and how good. A wrong answer raises nothing."""

    def warm(self) -> None:  # noqa: B027, nothing to load is a fair default
        """A small call that loads what a first call loads."""

    def rewind(self) -> int:
        """Restore what calls have changed; made between samples, outside the clock.

        Returns how many calls may follow before the next rewinding.
        """
        return 2**31

    def facts(self, *, thorough: bool) -> Facts:
        """Counts and sizes, after at least one call; those that are slow to make only if `thorough`."""
        del thorough
        return Facts()

    def keep(self) -> None:  # noqa: B027, most have no later rounds to help
        """Called when everything was right in the first round: note what later rounds compare with."""


class Subject(Protocol):
    """A kind of thing to measure.

    One that reads files of its own, such as a model's weights, has a `content()` too: a hash of them, so that rows of
    other files are not taken for its own when a run goes on.
    """

    def setup(self, case: Case, store: Store, key: str) -> Trial:
        """Make a case ready to run, outside the clock. Raises `Unsupported` where it cannot.

        `store` holds the shared inputs, `key` names this case in it.
        """
        ...


def subject_of(name: str) -> Subject:
    """The subject behind a name in `SUBJECTS` or a path. Raises ValueError where there is none."""
    found: Any = import_path(SUBJECTS.get(name, name))
    return found()


def subject_content(name: str) -> str:
    """A hash of the files that the subject behind a path reads, "" where it names none. Raises as `subject_of`."""
    content = getattr(subject_of(name), "content", None)
    return "" if content is None else content()
