"""Training data of the tiny BitNet: rows of text, repeated letters, MQAR, needles, and New York.

Each row depends only on the seed, the length, and the step and row number. The end of the standard library is held out:
training text and filler come from the rest.
"""

from __future__ import annotations

import random
import re
import string
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tasks.byte_tokenizer import ByteTokenizer
from tasks.encoding import encode
from tasks.mqar import MQARText
from tasks.needles import Needles
from tasks.new_york import NewYork
from tasks.text import TextBytes

if TYPE_CHECKING:
    from tasks.example import Example, Task

TOKENIZER = ByteTokenizer()
Row = tuple[Tensor, Tensor]  # tokens and the loss weight of each
NEEDLE = 160  # minimum tokens per needle in a row, including its question
ASKED = 50  # tokens per additional question, including its answer
LETTERS = string.ascii_letters + string.digits


class WeightedBatch(NamedTuple):
    """Tokens, and the loss weight of each as a target; padding has weight zero."""

    ids: Int[Tensor, "B n"]
    weights: Float[Tensor, "B n"]


def split_text(folder: Path, held_out: float) -> tuple[TextBytes, TextBytes]:
    """Split the standard library into two files in `folder`: the training text and the held-out share."""
    whole = TextBytes()
    everything = bytes(whole.tokens(len(whole)).tolist())
    cut = int(len(everything) * (1 - held_out))
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in (("train.bin", everything[:cut]), ("held_out.bin", everything[cut:])):
        (folder / name).write_bytes(content)
    return TextBytes(folder / "train.bin"), TextBytes(folder / "held_out.bin")


class Mixture:
    """Generates batches of `rows` rows of `length` tokens, whose kinds are drawn by `shares`."""

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

    def batch(self, rows: int, step: int) -> WeightedBatch:
        """Return the rows of step number `step`."""
        ids = torch.full((rows, self.length), TOKENIZER.pad_id)
        weights = torch.zeros(rows, self.length)
        for row in range(rows):
            draw = random.Random(f"{self.seed} {self.length} {step} {row}")
            (kind,) = draw.choices(list(self.shares), list(self.shares.values()))
            tokens, weight = KINDS[kind](self, draw)
            ids[row, : len(tokens)], weights[row, : len(tokens)] = tokens, weight
        return WeightedBatch(ids, weights)

    def of_text(self, draw: random.Random) -> Row:
        """Return a random range of the training text."""
        start = draw.randrange(len(self.text) - self.length)
        tokens = self.text.tokens(self.length, start=start).long()
        return tokens, torch.ones(self.length)

    def repeats(self, draw: random.Random) -> Row:
        """Repeat random letters; only predictable tokens have loss weight."""
        return self._pieces(self._repeat, draw)

    def _repeat(self, draw: random.Random, length: int) -> Row:
        period = draw.randint(3, length // 2)
        once = [ord(draw.choice(LETTERS)) for _ in range(period)]
        tokens = torch.tensor((once * (length // period + 1))[:length])
        return tokens, (torch.arange(length) > period).float()

    def mqar(self, draw: random.Random) -> Row:
        """Return pairs followed by all their keys again; a value has loss weight if it is predictable."""
        return self._pieces(self._recall, draw)

    def _recall(self, draw: random.Random, length: int) -> Row:
        pairs = draw.randint(2, (length - 1) // 12)
        task = MQARText(length, pairs=pairs, power=draw.choice((0.01, 1.0)), seed=draw.getrandbits(32))
        ids, labels = encode(task.example(0), TOKENIZER, learn="spans")
        return ids, (labels >= 0).float()

    def _pieces(self, make: Callable[[random.Random, int], Row], draw: random.Random) -> Row:
        """Fill a row with independent examples of `piece` tokens."""
        parts = [make(draw, self.piece) for _ in range(self.length // self.piece)]
        tokens, weights = zip(*parts, strict=True)
        return torch.cat(tokens), torch.cat(weights)

    def needles(self, draw: random.Random) -> Row:
        """Return needles in text, all queried one after another; text has loss weight, and answers have more."""
        count = draw.randint(1, max(1, self.length // NEEDLE))
        room = self.length - (count - 1) * ASKED
        seed = draw.getrandbits(32)
        task = Needles(room, needles=count, queries=count, wording="short", text=self.text, seed=seed)
        example = task.example(0)
        pairs = zip(example.metadata["keys"], example.metadata["references"], strict=True)
        return self._asked(example, [(f"The special magic of {key} is", f" {value}") for key, value in pairs])

    def new_york(self, draw: random.Random) -> Row:
        """Mention New York one to three times and ask for the adjectives of the first one or two, in any order."""
        nth = draw.randint(1, 1 if self.length < 200 else 2)
        mentions = nth if self.length < 256 else draw.randint(nth, nth + 1)
        decoys = 0 if self.length < 512 else draw.randint(0, 2)
        room = self.length - ASKED * (nth - 1)
        task = NewYork(
            room,
            nth=nth,
            mentions=mentions,
            decoys=decoys,
            wording="short",
            text=self.text,
            seed=draw.getrandbits(32),
        )
        example = task.example(0)
        return self._ask_mentions(example, draw.sample(range(nth), nth))

    def counting(self, draw: random.Random) -> Row:
        """Mention New York two or three times among other cities, also in short rows, and ask for the first two.

        If only the last mention were asked for, a model would not need to count.
        """
        mentions, decoys, seed = draw.randint(2, 3), draw.randint(0, 2), draw.getrandbits(32)
        room = self.length - ASKED
        task = NewYork(room, nth=2, mentions=mentions, decoys=decoys, wording="short", text=self.text, seed=seed)
        return self._ask_mentions(task.example(0), draw.sample(range(2), 2))

    def _ask_mentions(self, example: Example, order: list[int]) -> Row:
        found = re.findall(r"(\w+) New York", example.prompt)
        return self._asked(example, [(f"Adjective before New York, mention {i + 1}:", f" {found[i]}") for i in order])

    def _asked(self, example: Example, questions: list[tuple[str, str]]) -> Row:
        """Return an example's text followed by the given questions and answers instead of its own."""
        pieces = [(example.prompt[: example.prompt.rindex("\n")], 1.0)]
        for question, answer in questions:
            pieces += [(f"\n{question}", 1.0), (answer, self.answer_weight)]
        parts = [(TOKENIZER.encode(piece), weight) for piece, weight in pieces]
        ids = [TOKENIZER.bos_id, *(token for tokens, _ in parts for token in tokens), TOKENIZER.eos_id]
        weights = [1.0, *(weight for tokens, weight in parts for _ in tokens), 1.0]
        return torch.tensor(ids), torch.tensor(weights)


KINDS: Mapping[str, Callable[[Mixture, random.Random], Row]] = {
    "text": Mixture.of_text,
    "repeats": Mixture.repeats,
    "mqar": Mixture.mqar,
    "needles": Mixture.needles,
    "new_york": Mixture.new_york,
    "counting": Mixture.counting,
}


def checks(length: int, text: TextBytes, seed: int = 1_000) -> dict[str, Task]:
    """Return the tasks for accuracy, on held-out text.

    New York has one more mention than the one asked for, and two other cities; in rows shorter than 512, neither.
    """
    found: dict[str, Task] = {
        "mqar": MQARText(length, pairs=length // 32, power=1.0, seed=seed),
        "needles": Needles(length, wording="short", text=text, seed=seed),
    }
    for nth in (1, 2):
        few: dict[str, Any] = {"mentions": nth, "decoys": 0} if length < 512 else {}
        found[f"new_york_{nth}"] = NewYork(length, nth=nth, **few, wording="short", text=text, seed=seed)
    return found
