"""Generated samples of any length, which need no network and are judged by their own task's rule.

Includes RULER's tasks that need no external data (Hsieh et al. 2024, https://arxiv.org/abs/2404.06654: `tasks.needles`,
and `tasks.variable_tracking` as "vt"), and `tasks.new_york`.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from attentions.common.settings import require
from bmrt.evaluation.evaluate import Sample
from tasks.needles import RULER, Needles
from tasks.new_york import NewYork
from tasks.variable_tracking import VariableTracking

if TYPE_CHECKING:
    from bmrt.cache.prompts import Prompts
    from tasks.example import Example, Task

RULER_TASKS = (*RULER, "vt")
TASKS = (*RULER_TASKS, "new_york")
MAX_TOTAL = 2**33  # tokens or bytes of all samples, which are generated up front


class Generated:
    """`count` samples of a task in `TASKS`, each of `length` tokens of the model, including the answer.

    `wording` is "ruler", or "short" for small models. Raises ValueError for an unknown task and for a length that is
    too short for the task's sentences.
    """

    def __init__(self, task: str, length: int, *, count: int, wording: str, seed: int, prompts: Prompts) -> None:
        require(task in TASKS, "task", task, f"one of {', '.join(TASKS)}")
        require(count >= 1, "num_samples", count, "an integer of at least 1")
        require_size(length, count)
        self._task = _generator(task, length, wording, {"seed": seed, "tokenizer": CountedBy(prompts)})
        self._examples = {f"{task}-{i}": self._task.example(i) for i in range(count)}
        self.samples = [_sample(example, name) for name, example in self._examples.items()]

    def judge(self, sample: Sample, response: str) -> float:
        """Return the task's own score of an answer to one of these samples, from 0 to 1."""
        return self._task.score(self._examples[sample.id], printable(response))


def require_size(length: int, count: int) -> None:
    """Raise ValueError if all samples together would not fit in memory."""
    size = f"{length:,} times {count:,}"
    require(length * count <= MAX_TOTAL, "length and number of samples", size, f"at most {MAX_TOTAL:,} in total")


class CountedBy:
    """Adapts a model's tokenizer to `tasks`, which use it to fill a length exactly; it is only used for counting."""

    pad_id = bos_id = eos_id = vocab_size = 0

    def __init__(self, prompts: Prompts) -> None:
        self.count = prompts.count
        self.encode: Any = prompts.count
        self.decode: Any = prompts.count


def printable(response: str) -> str:
    """Replace control characters by line breaks, as RULER's own scorer does."""
    return re.sub(r"[\x00-\x1f]", "\n", response).strip()


def _generator(task: str, length: int, wording: str, common: dict[str, Any]) -> Task:
    if task == "vt":
        return VariableTracking(length, shot=wording == "ruler", wording=wording, **common)
    if task == "new_york":
        return NewYork(length, wording="full" if wording == "ruler" else wording, **common)
    return Needles(length, **{**RULER[task], "wording": wording, **common})


def _sample(example: Example, name: str) -> Sample:
    """Split a prompt: the last line is the question, and everything before it the context."""
    context, line, question = example.prompt.rpartition("\n")
    return Sample(name, context + line, question, example.answer, example.metadata)
