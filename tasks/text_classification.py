"""Text classification on bytes of real text, without a download: name the standard library package of a snippet.

Snippets are whole lines of the source of the packages below. Each package's files are divided between training and
held-out examples, so no part of a held-out file is seen in training.
"""

from __future__ import annotations

import hashlib
import itertools
import sysconfig
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.example import Example, Task, one_of
from tasks.haystack import Room, ring, split_lines
from tasks.text import SKIPPED_FOLDERS

if TYPE_CHECKING:
    from tasks.tokenizer import Tokenizer

FAMILIES = (  # without packages that some systems omit, such as tkinter and idlelib
    "asyncio",
    "email",
    "encodings",
    "http",
    "importlib",
    "logging",
    "multiprocessing",
    "unittest",
    "urllib",
    "xml",
)
HELD_OUT = 0.2  # minimum fraction of held-out bytes per family: whole files, in order of name hashes
WORDINGS = {
    "full": "\nWhich part of Python's standard library is this from: " + ", ".join(FAMILIES) + "?\nAnswer:",
    "short": "\nFamily:",
}


class TextClassification(Task):
    """Snippets that fill `length` tokens of prompt, answer, bos, and eos; families are equally frequent.

    split: "train" or "held_out", which share no file.
    wording: "full" lists the families; "short" only asks, for models trained on this task.
    Raises ValueError for other names, if a family's source is not installed, and, when an example is made, for a length
    too short for the question or too long for a family.
    """

    def __init__(
        self,
        length: int,
        *,
        split: str = "train",
        wording: str = "full",
        tokenizer: Tokenizer | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(seed=seed)
        one_of("split", split, ("train", "held_out"))
        one_of("wording", wording, WORDINGS)
        self.room, self.split, self.question = Room(length, tokenizer), split, WORDINGS[wording]

    def example(self, index: int) -> Example:
        draw = self.draw(index)
        family = draw.choice(FAMILIES)
        filler, answer = ring(_lines(family, self.split), draw.random()), f" {family}"
        lines = self.room.fill(filler, lambda lines: "\n".join(lines) + self.question + answer)
        facts = {"task": self.name, "family": family, "split": self.split}
        return Example("\n".join(lines) + self.question, answer, facts)

    def chance(self, example: Example) -> float:
        return 1 / len(FAMILIES)


@cache
def _lines(family: str, split: str) -> tuple[str, ...]:
    """Return all lines of a family's files in one split."""
    root = Path(sysconfig.get_path("stdlib"))
    files = [path for path in (root / family).rglob("*.py") if not SKIPPED_FOLDERS & set(path.relative_to(root).parts)]
    if len(files) < 2:
        raise ValueError(
            f"this installation of Python has no source of {family!r} in {root}: install the full standard library"
        )
    files.sort(key=lambda path: hashlib.sha256(path.relative_to(root).as_posix().encode()).digest())
    sizes = list(itertools.accumulate(path.stat().st_size for path in files))
    held_out = min(1 + sum(size < HELD_OUT * sizes[-1] for size in sizes), len(files) - 1)
    chosen = files[:held_out] if split == "held_out" else files[held_out:]
    return tuple(line for path in chosen for line in split_lines(path.read_bytes()))
