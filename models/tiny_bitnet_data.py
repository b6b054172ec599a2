"""What the tiny BitNet reads: rows of text, repeated letters, MQAR, needles and New York, one example a row.

Each kind makes row number i of a length from the seed alone. The end of the standard library is held out: training
text and fillers come from the rest.
"""

from __future__ import annotations

import random
import string
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tasks.byte_tokenizer import ByteTokenizer
from tasks.encoding import encode
from tasks.example import Example, Task
from tasks.mqar import MQARText
from tasks.needles import Needles
from tasks.new_york import NewYork
from tasks.text import TextBytes

TOKENIZER = ByteTokenizer()
Row = tuple[Tensor, Tensor]  # tokens, and the weight of each in the loss
LETTERS = string.ascii_letters + string.digits


class Rows(NamedTuple):
    """Tokens, and how much each counts in the loss when it is to be predicted; padding counts nothing."""

    ids: Int[Tensor, "B n"]
    weights: Float[Tensor, "B n"]


def split_text(folder: Path, held_out: float) -> tuple[TextBytes, TextBytes]:
    """The standard library in two files of `folder`: what is trained on, and the share of it that is not."""
    whole = TextBytes()
    everything = bytes(whole.tokens(len(whole)).tolist())
    cut = int(len(everything) * (1 - held_out))
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in (("train.bin", everything[:cut]), ("held_out.bin", everything[cut:])):
        (folder / name).write_bytes(content)
    return TextBytes(folder / "train.bin"), TextBytes(folder / "held_out.bin")


class Mixture:
    """Endless batches of `rows` rows of `length` tokens, whose kinds are drawn by `shares`."""

    def __init__(
        self,
        shares: Mapping[str, float],
        length: int,
        *,
        piece: int | None = None,
        text: TextBytes,
        answer_weight: float,
        seed: int,
    ) -> None:
        unknown = set(shares) - set(KINDS)
        if unknown:
            raise ValueError(f"mix={sorted(unknown)} is not allowed: the kinds are {', '.join(KINDS)}")
        self.shares, self.length, self.text = dict(shares), length, text
        self.piece = length if piece is None else piece
        self.answer_weight, self.seed = answer_weight, seed

    def batch(self, rows: int, step: int) -> Rows:
        """The rows of step number `step`."""
        ids = torch.full((rows, self.length), TOKENIZER.pad_id)
        weights = torch.zeros(rows, self.length)
        for row in range(rows):
            draw = random.Random(f"{self.seed} {self.length} {step} {row}")
            (kind,) = draw.choices(list(self.shares), list(self.shares.values()))
            tokens, weight = KINDS[kind](self, draw)
            ids[row, : len(tokens)], weights[row, : len(tokens)] = tokens, weight
        return Rows(ids, weights)

    def of_text(self, draw: random.Random) -> Row:
        """A stretch of the training text."""
        start = draw.randrange(len(self.text) - self.length)
        tokens = self.text.tokens(self.length, start=start).long()
        return tokens, torch.ones(self.length)

    def repeats(self, draw: random.Random) -> Row:
        """Random letters and the same letters again, over and over; what can be known counts."""
        return self._pieces(self._repeat, draw)

    def _repeat(self, draw: random.Random, length: int) -> Row:
        period = draw.randint(3, length // 2)
        once = [ord(draw.choice(LETTERS)) for _ in range(period)]
        tokens = torch.tensor((once * (length // period + 1))[:length])
        return tokens, (torch.arange(length) > period).float()

    def mqar(self, draw: random.Random) -> Row:
        """Pairs and all their keys again; a value counts where it can be known."""
        return self._pieces(self._recall, draw)

    def _recall(self, draw: random.Random, length: int) -> Row:
        pairs = draw.randint(2, (length - 1) // 12)
        task = MQARText(length, pairs=pairs, power=draw.choice((0.01, 1.0)), seed=draw.getrandbits(32))
        return self._encoded(task.example(0), learn="spans", rest=0.0, weight=1.0)

    def _pieces(self, make: Callable[[random.Random, int], Row], draw: random.Random) -> Row:
        """A row of independent examples of `piece` tokens, as many as fit."""
        parts = [make(draw, self.piece) for _ in range(self.length // self.piece)]
        tokens, weights = zip(*parts, strict=True)
        return torch.cat(tokens), torch.cat(weights)

    def needles(self, draw: random.Random) -> Row:
        """A needle, in longer rows perhaps another, in text; text counts, the answer more."""
        count = draw.randint(1, 2 if self.length >= 256 else 1)
        seed = draw.getrandbits(32)
        return self._task(Needles(self.length, needles=count, wording="short", text=self.text, seed=seed))

    def new_york(self, draw: random.Random) -> Row:
        """The adjective before the first or second New York; in short rows with less beside it."""
        nth = draw.randint(1, 2)
        mentions = nth if self.length < 256 else draw.randint(nth, nth + 1)
        decoys = 0 if self.length < 512 else draw.randint(0, 2)
        settings: dict[str, Any] = {"nth": nth, "mentions": mentions, "decoys": decoys}
        seed = draw.getrandbits(32)
        return self._task(NewYork(self.length, **settings, wording="short", text=self.text, seed=seed))

    def _task(self, task: Task) -> Row:
        return self._encoded(task.example(0), learn="answer", rest=1.0, weight=self.answer_weight)

    def _encoded(self, example: Example, *, learn: str, rest: float, weight: float) -> Row:
        ids, labels = encode(example, TOKENIZER, learn=learn)
        return ids, torch.where(labels >= 0, weight, rest)


KINDS: Mapping[str, Callable[[Mixture, random.Random], Row]] = {
    "text": Mixture.of_text,
    "repeats": Mixture.repeats,
    "mqar": Mixture.mqar,
    "needles": Mixture.needles,
    "new_york": Mixture.new_york,
}


def checks(length: int, text: TextBytes, seed: int) -> dict[str, Task]:
    """The tasks on which accuracy is taken, on text that was held out."""
    found: dict[str, Task] = {
        "mqar": MQARText(length, pairs=length // 32, power=1.0, seed=seed),
        "needles": Needles(length, wording="short", text=text, seed=seed),
    }
    for nth in (1, 2):
        few: dict[str, Any] = {"mentions": nth, "decoys": 0} if length < 512 else {}
        found[f"new_york_{nth}"] = NewYork(length, nth=nth, **few, wording="short", text=text, seed=seed)
    return found
