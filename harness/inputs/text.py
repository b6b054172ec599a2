"""Induction attention over real bytes, as uneven as attention in a language model.

Key j encodes the bytes before j; query i encodes the bytes before i + 1, its own included; value j is the byte at j. So
a query attends to earlier places with the same recent bytes, and reads the byte that followed there. A context is c =
Σ_o w_o·E_o[byte o places back] over the last CONTEXT bytes, where w_o² falls by a factor of DECAY per offset, Σ w_o² =
1, and E_o is a table of 256 random unit vectors, one table per offset and key/value head. Keys are √D·c (coordinates of
about unit variance) and queries τ·c, so with the usual scale 1/√D a score is τ·c·c': about τ if the whole context
matches, and the matching part of τ if some of it does. Even query heads are sharp (τ = SHARP), odd ones diffuse (τ =
DIFFUSE).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from harness.common.source_hash import content_hash
from harness.inputs.base import (
    CALIBRATION,
    CALIBRATION_LIMIT,
    InputKind,
    Inputs,
    Sizes,
    empty_inputs,
    generator,
    sizes_of,
)
from tasks.text import TextBytes

if TYPE_CHECKING:
    from harness.common.rows import Case

CONTEXT = 6
DECAY = 0.7
SHARP = 32.0
DIFFUSE = 12.0


@dataclass(frozen=True)
class Text(InputKind):
    """Inputs from the text file at `path`, or from the Python standard library's source."""

    path: str | None = None

    def make(self, case: Case, variant: int) -> Inputs:
        sizes = sizes_of(case, variant)
        q, k, v = empty_inputs(sizes)
        for b, tokens in enumerate(self._tokens(case, variant)):
            for g in range(sizes.kv_heads):
                context = contexts(tokens, sizes.head_dim, case.seed, g)
                k[b, g] = context[:-1] * sizes.head_dim**0.5
                v[b, g] = F.embedding(tokens[CONTEXT:], byte_table(sizes.value_dim, case.seed, g, "value"))
                for h in range(g * sizes.group, (g + 1) * sizes.group):
                    q[b, h] = context[-sizes.queries :] * temperature(h)
        return Inputs(q, k, v, {"text": self.source.origin})

    def hidden(self, case: Case, variant: int) -> Float[Tensor, "B M X"]:
        """Encode each position's recent bytes, its own included, with coordinates of about unit variance."""
        sizes = sizes_of(case, variant)
        rows = [contexts(tokens, sizes.width, case.seed, "layer")[1:] for tokens in self._tokens(case, variant)]
        return torch.stack([(row * sizes.width**0.5).to(sizes.dtype) for row in rows])

    def why_not(self, case: Case) -> str:
        needed = stretches(case).needed
        try:
            size = len(self.source)
        except ValueError as error:
            return str(error)
        if size >= needed:
            return ""
        return (
            f"{self.source.origin} is too short: it has {size} bytes, and n={case.n}, batch={case.batch} "
            f"need {needed} (one and a half times n and a calibration sample for each sequence)"
        )

    def identity(self) -> str:
        return "" if self.path is None else content_hash(Path(self.path))

    @cached_property
    def source(self) -> TextBytes:
        """The text, read on first use."""
        return TextBytes(self.path)

    def _tokens(self, case: Case, variant: int) -> list[Int[Tensor, " CM"]]:
        """Return, for each sequence, the CONTEXT bytes before it and its own M bytes."""
        plan = stretches(case)
        if variant == CALIBRATION:
            size = plan.calibration
            return [self.source.tokens(size, seed=case.seed, start=b * size).long() for b in range(case.batch)]
        sequences = []
        for b in range(case.batch):
            text = self.source.tokens(
                plan.sequence, seed=case.seed, start=case.batch * plan.calibration + b * plan.sequence
            )
            end = CONTEXT + plan.sizes.shared
            tail = text[end:].split(plan.sizes.positions - plan.sizes.shared)[variant]
            sequences.append(torch.cat((text[:end], tail)).long())
        return sequences


@dataclass(frozen=True)
class Stretches:
    """Bytes used by one sequence: its calibration sample, and both variants with their shared half."""

    sizes: Sizes
    calibration: int
    sequence: int

    @property
    def needed(self) -> int:
        """Bytes that a text must have for the whole case."""
        return self.sizes.batch * (self.calibration + self.sequence)


def stretches(case: Case) -> Stretches:
    """Divide the text for a case: first all calibration samples, then sequence by sequence."""
    sizes = sizes_of(case, 0)
    return Stretches(
        sizes=sizes,
        calibration=CONTEXT + min(case.n, CALIBRATION_LIMIT),
        sequence=CONTEXT + 2 * sizes.positions - sizes.shared,
    )


def contexts(tokens: Int[Tensor, " CM"], width: int, seed: int, head: object) -> Float[Tensor, "M1 width"]:
    """Encode the preceding bytes at each of the M + 1 places that follow the first CONTEXT of CONTEXT + M bytes."""
    places = len(tokens) - CONTEXT + 1
    out = torch.zeros(places, width)
    for offset, weight in enumerate(context_weights(), start=1):
        start = CONTEXT - offset
        out += F.embedding(tokens[start : start + places], weight * byte_table(width, seed, head, offset))
    return out


def context_weights() -> list[float]:
    """Return w_1 … w_CONTEXT, nearest byte first."""
    squares = [DECAY**offset for offset in range(CONTEXT)]
    return [(square / sum(squares)) ** 0.5 for square in squares]


def byte_table(width: int, seed: int, head: object, role: object) -> Float[Tensor, "256 width"]:
    """Return a random vector per byte: unit length for contexts, unit variance for values."""
    table = torch.randn(256, width, generator=generator("text", seed, head, role))
    return table if role == "value" else F.normalize(table, dim=-1)


def temperature(head: int) -> float:
    """Return the temperature of a query head: sharp if even, diffuse if odd."""
    return DIFFUSE if head % 2 else SHARP
