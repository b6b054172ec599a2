"""The interface of subjects: a subject sets up a case and returns a trial, which is called, timed and checked.

`attention`, `accuracy` and `component` are built in; any other subject is `package.module:Class`, constructed without
arguments.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import torch

from harness.common.import_path import import_path

if TYPE_CHECKING:
    from harness.common.rows import Case
    from harness.subjects.references import Store

# Import paths, so that reading this table imports none of them.
SUBJECTS: dict[str, str] = {
    "attention": "harness.subjects.attention:AttentionSubject",
    "accuracy": "harness.subjects.attention:AccuracySubject",
    "component": "harness.subjects.component:ComponentSubject",
}


class Unsupported(Exception):  # noqa: N818, not an error
    """Raised by `Subject.setup` if a case cannot run; the message is the reason, one plain sentence."""


@dataclass(frozen=True)
class CheckResult:
    """The result of a check: metrics by name, and why the answer is wrong ("" if it is right)."""

    metrics: dict[str, float] = field(default_factory=dict)
    wrong: str = ""


@dataclass(frozen=True)
class Facts:
    """Facts about a case that need no timing: fields of its row, None if unknown.

    `flops` and `moved_bytes` are per call; `moved_bytes` is the minimum that must be read and written.
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
    """One case, ready to run. `tokens` is the number of tokens per call; `timed` tells whether its time matters."""

    tokens: int
    timed: bool = True
    device: torch.device = torch.device("cpu")

    @abstractmethod
    def call(self, variant: int) -> Any:
        """Run the timed work on one of two sets of inputs, 0 or 1, which alternate."""

    @abstractmethod
    def check(self, variant: int, answer: Any) -> CheckResult:
        """Check the latest call's answer and measure its quality. A wrong answer does not raise."""

    def warm(self) -> None:  # noqa: B027, doing nothing is a valid default
        """Make a small call that loads whatever a first call loads."""

    def rewind(self) -> int:
        """Undo what calls have changed; called between samples, outside the timing.

        Returns how many calls may follow before the next rewind.
        """
        return 2**31

    def facts(self, *, thorough: bool) -> Facts:
        """Return counts and sizes, after at least one call; slow ones only if `thorough`."""
        del thorough
        return Facts()

    def keep(self) -> None:  # noqa: B027, most subjects need nothing here
        """Record what later rounds compare with; called when everything was right in the first round."""


class Subject(Protocol):
    """A kind of thing to measure.

    A subject that reads files of its own, such as a model's weights, also has a `content()` method that returns a hash
    of them, so that a resumed run does not reuse rows measured with other files.
    """

    def setup(self, case: Case, store: Store, key: str) -> Trial:
        """Make a case ready to run, outside the timing. Raises `Unsupported` if it cannot run.

        `store` holds the shared inputs, and `key` is this case's name in it.
        """
        ...


def subject_of(name: str) -> Subject:
    """Return the subject for a name in `SUBJECTS` or a path. Raises ValueError if there is none."""
    found: Any = import_path(SUBJECTS.get(name, name))
    return found()


def subject_content(name: str) -> str:
    """Return a hash of the files that a subject reads, "" if it declares none. Raises as `subject_of` does."""
    content = getattr(subject_of(name), "content", None)
    return "" if content is None else content()
