"""Define `Job`: work with its arguments, which `harness.runner.executor` runs in a process of its own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Generic, TypeVar, get_args

Answer = TypeVar("Answer", covariant=True)


class Job(ABC, Generic[Answer]):
    """Work for a child process, as data: a subclass is a frozen dataclass whose fields are the arguments.

    A subclass stands at the top level of a module that the child can import, and names the type of its answer:
    `class Measure(Job[Times])`. Fields and answer travel as JSON and are rebuilt by pydantic, so they consist of plain
    data, paths, dataclasses and pydantic models. What a user defines is named by its import path.
    """

    @abstractmethod
    def run(self) -> Answer:
        """Do the work, in the child; any exception becomes the outcome of the job."""


def path_of(kind: type[Job[Any]]) -> str:
    """Return the import path of a kind of job, `package.module:Class`."""
    return f"{kind.__module__}:{kind.__qualname__}"


def answer_type(kind: type[Job[Any]]) -> Any:
    """Return the type between the brackets of `class Measure(Job[Times])`."""
    return get_args(kind.__orig_bases__[0])[0]  # type: ignore[attr-defined]
