"""Samples that are made here, of any length and without a network, and judged by their own task's rule.

RULER's tasks that need no other data (Hsieh et al. 2024, https://arxiv.org/abs/2404.06654: `tasks.needles`,
`tasks.variable_tracking` as "vt"), and `tasks.new_york`.
"""

from __future__ import annotations

import re
from typing import Any

from attentions.base import require
from bmrt.evaluation import Sample
from bmrt.text import Prompts
from tasks.example import Example, Task
from tasks.needles import RULER, Needles
from tasks.new_york import NewYork
from tasks.variable_tracking import VariableTracking

RULER_TASKS = (*RULER, "vt")
TASKS = (*RULER_TASKS, "new_york")
MOST = 2**33  # tokens or bytes of all samples, which are made before the first is asked


class Generated:
    """`count` samples of a task in `TASKS`, each of `length` tokens of the model's, answer included.

    `wording`: "ruler", or "short" for small models. Raises ValueError for an unknown task and for a length that is too
    short for its sentences.
    """

    def __init__(self, task: str, length: int, *, count: int, wording: str, seed: int, prompts: Prompts) -> None:
        require(task in TASKS, "task", task, f"one of {', '.join(TASKS)}")
        require(count >= 1, "num_samples", count, "an integer of at least 1")
        require_size(length, count)
        self._task = _generator(task, length, wording, {"seed": seed, "tokenizer": CountedBy(prompts)})
        self._examples = {f"{task}-{i}": self._task.example(i) for i in range(count)}
        self.samples = [_sample(example, name) for name, example in self._examples.items()]

    def judge(self, sample: Sample, response: str) -> float:
        """The task's own score of an answer to one of these samples, from 0 to 1."""
        return self._task.score(self._examples[sample.id], printable(response))


def require_size(length: int, count: int) -> None:
    """Raise ValueError for so many texts of such a length that no memory holds them."""
    size = f"{length:,} times {count:,}"
    require(length * count <= MOST, "length and number of samples", size, f"at most {MOST:,} together")


class CountedBy:
    """A model's tokenizer as `tasks` know it, to fill a length exactly; it only ever counts."""

    pad_id = bos_id = eos_id = vocab_size = 0

    def __init__(self, prompts: Prompts) -> None:
        self.count = prompts.count
        self.encode: Any = prompts.count
        self.decode: Any = prompts.count


def printable(response: str) -> str:
    """Line breaks for control characters, as RULER's own scorer has it."""
    return re.sub(r"[\x00-\x1f]", "\n", response).strip()


def _generator(task: str, length: int, wording: str, common: dict[str, Any]) -> Task:
    if task == "vt":
        return VariableTracking(length, shot=wording == "ruler", wording=wording, **common)
    if task == "new_york":
        return NewYork(length, wording="full" if wording == "ruler" else wording, **common)
    return Needles(length, **{**RULER[task], "wording": wording, **common})


def _sample(example: Example, name: str) -> Sample:
    """The last line is the question; all before it is the context."""
    context, line, question = example.prompt.rpartition("\n")
    return Sample(name, context + line, question, example.answer, example.metadata)
