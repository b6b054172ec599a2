"""Multi-query associative recall: key-value pairs, then every key again, whose value must be recalled.

Arora et al. 2023, Zoology, https://arxiv.org/abs/2312.04927. `MQAR` is the paper's task on token numbers, `MQARText`
the same on bytes of text, for models that read text.

The context is k1 v1 ... kN vN. Keys then return at even offsets 2g; the gaps g are drawn without replacement with
probability proportional to g^(a-1), so most keys return early. There are two differences from the published generator:
filler tokens are also drawn from the seed, and they are never one of the example's keys.
"""

from __future__ import annotations

import itertools
import string
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from tasks.encoding import IGNORED, SPECIAL
from tasks.example import Example, Task, one_of
from tasks.names import letters


class Recall(NamedTuple):
    """A batch; `labels[b, i]` is the token to predict at position i after `inputs[b, :i + 1]`: already shifted.

    -100 where nothing is predicted. An answer is not the next input; a filler is.
    """

    inputs: Int[Tensor, "B n"]
    labels: Int[Tensor, "B n"]


class MQAR:
    """Sequences of `length` tokens with `pairs` pairs out of `vocab` tokens.

    Keys are from 1 to vocab/2 - 1 and values from vocab/2 to vocab - 1, each without replacement; 0 is blank.
    power: the exponent a of the gaps; 1 makes them uniform. fillers: "blank" or "random" tokens between the queries.
    Raises ValueError for an odd length, and if pairs do not fit the length (4·pairs) or the vocabulary.
    """

    def __init__(
        self,
        length: int,
        *,
        pairs: int,
        vocab: int = 8192,
        power: float = 0.01,
        fillers: str = "blank",
        seed: int = 0,
    ) -> None:
        one_of("fillers", fillers, ("blank", "random"))
        if length % 2 or not 1 <= pairs <= min(length // 4, vocab // 2 - 1):
            raise ValueError(
                f"length={length}, pairs={pairs}, vocab={vocab} are not allowed: length must be even, and pairs "
                "from 1 to length/4 and at most vocab/2 - 1"
            )
        self.length, self.pairs, self.vocab = length, pairs, vocab
        self.power, self.fillers, self.seed = power, fillers, seed

    def batch(self, count: int, start: int = 0) -> Recall:
        """Return sequences `start` to `start + count - 1`; each depends only on settings, seed, and its number."""
        inputs, labels = zip(*(self._sequence(start + i) for i in range(count)), strict=True)
        return Recall(torch.from_numpy(np.stack(inputs)), torch.from_numpy(np.stack(labels)))

    def _sequence(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        draw = np.random.default_rng([self.seed, index])
        half, context = self.vocab // 2, 2 * self.pairs
        keys = 1 + draw.choice(half - 1, self.pairs, replace=False)
        values = half + draw.choice(self.vocab - half, self.pairs, replace=False)
        places = context + 2 * power_gaps(draw, (self.length - context) // 2, self.pairs, self.power)
        inputs, labels = np.zeros(self.length, np.int64), np.full(self.length, IGNORED, np.int64)
        if self.fillers == "random":
            inputs[:] = np.setdiff1d(np.arange(self.vocab), keys)[
                draw.integers(self.vocab - self.pairs, size=self.length)
            ]
        inputs[:context:2], inputs[1:context:2] = keys, values
        inputs[places], labels[places] = keys, values
        return inputs, labels


class MQARText(Task):
    """Text of at most `length` tokens, in bytes: pairs such as "ab=XY ", then the keys again, each with its value.

    The values of all returning keys are spans, except that of the last, which is the answer and always at the end.
    Slots between returning keys are filled with dots.
    power: as in `MQAR`.
    Raises ValueError if the pairs do not fit.
    """

    def __init__(self, length: int, *, pairs: int, power: float = 0.01, seed: int = 0) -> None:
        super().__init__(seed=seed)
        self.width = next(width for width in range(2, 9) if 26**width >= 2 * pairs)
        self.slots = (length - SPECIAL + 1) // (2 * self.width + 2)  # the last slot has no trailing space
        self.length, self.pairs, self.power = length, pairs, power
        if not 1 <= pairs <= self.slots // 2:
            raise ValueError(
                f"pairs={pairs} is not allowed: with length={length} it must be 1 to {max(self.slots // 2, 0)}"
            )

    def example(self, index: int) -> Example:
        draw = self.draw(index)
        names = (letters(draw, self.width, alphabet) for alphabet in (string.ascii_lowercase, string.ascii_uppercase))
        pairs = [f"{key}={value}" for key, value in itertools.islice(zip(*names, strict=True), self.pairs)]
        free = self.slots - self.pairs - 1
        gaps = power_gaps(np.random.default_rng(draw.getrandbits(64)), free, self.pairs - 1, self.power)
        asked = draw.sample(range(self.pairs), self.pairs)
        slots = pairs + ["." * len(pairs[0])] * (free + 1)
        places = [*(self.pairs + int(gap) for gap in gaps), len(slots) - 1]
        for place, which in zip(places, asked, strict=True):
            slots[place] = pairs[which]
        text, size = " ".join(slots), len(pairs[0]) + 1
        spans = sorted((place * size + self.width + 1, place * size + size - 1) for place in places[:-1])
        facts = {
            "task": self.name,
            "pairs": self.pairs,
            "gaps": [place - which for place, which in zip(places, asked, strict=True)],
        }
        return Example(text[: -self.width], text[-self.width :], facts, tuple(spans))


def power_gaps(draw: np.random.Generator, space: int, count: int, power: float) -> Int[np.ndarray, " count"]:
    """Draw `count` distinct gaps from 0 to space - 1, one by one with probability ~ (1 + gap)^(power - 1)."""
    weights = np.arange(1, space + 1) ** (power - 1.0)
    noise = draw.gumbel(size=space)  # the Gumbel top-k trick
    return np.argsort(-(np.log(weights) + noise), kind="stable")[:count]
