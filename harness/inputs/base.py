"""What a kind of inputs is: sizes, the two sets that share their first half, and seeded draws.

Axis letters as in `attentions.base`: B batch, H query heads, G key/value heads, N queries, M positions
(keys), D query/key dimension, E value dimension; X is the width of a layer, H·D.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from harness.rows import Case

CALIBRATION = 2  # the variant that methods learn codebooks from
CALIBRATION_LIMIT = 16_384


@dataclass(frozen=True)
class Inputs:
    """One set of inputs on the CPU: q (B, H, N, D), k (B, G, M, D), v (B, G, M, E). `meta` is plain data for JSON."""

    q: Tensor
    k: Tensor
    v: Tensor
    meta: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Sizes:
    """Sizes of one variant of a case. The first `shared` positions are the same in variants 0 and 1."""

    batch: int
    heads: int
    kv_heads: int
    queries: int
    positions: int
    head_dim: int
    value_dim: int
    dtype: torch.dtype

    @property
    def shared(self) -> int:
        return self.positions // 2

    @property
    def group(self) -> int:
        return self.heads // self.kv_heads

    @property
    def width(self) -> int:
        return self.heads * self.head_dim


def sizes_of(case: Case, variant: int) -> Sizes:
    """Sizes of q, k and v: N = M = n, in decode mode one query after n keys, so M = n + 1 and N = 1.

    The calibration sample has at most 16,384 positions and always as many queries.
    """
    if variant not in (0, 1, CALIBRATION):
        raise ValueError(f"variant={variant} is not allowed: it must be 0, 1 or {CALIBRATION} (calibration)")
    positions = case.n + 1 if case.mode == "decode" else case.n
    queries = 1 if case.mode == "decode" else case.n
    if variant == CALIBRATION:
        positions = queries = min(case.n, CALIBRATION_LIMIT)
    return Sizes(
        batch=case.batch,
        heads=case.heads,
        kv_heads=case.kv_heads,
        queries=queries,
        positions=positions,
        head_dim=case.head_dim,
        value_dim=case.value_dim,
        dtype=getattr(torch, case.dtype),
    )


class InputKind(ABC):
    """A source of inputs. Variants 0 and 1 share their first half exactly; variant 2 is the calibration sample."""

    @abstractmethod
    def make(self, case: Case, variant: int) -> Inputs:
        """q, k and v of a case at kernel level. Raises ValueError where the source cannot give them."""

    @abstractmethod
    def hidden(self, case: Case, variant: int) -> Float[Tensor, "B M X"]:
        """x of a case at layer level: every position, in decode mode the new one last."""

    def why_not(self, case: Case) -> str:
        """Empty when the source can give this case's inputs, else one plain sentence; cheap, made for planning."""
        del case
        return ""

    def identity(self) -> str:
        """A hash of what decides these inputs beside a case and the code of this package; empty if nothing does."""
        return ""


class Draws:
    """Random numbers of one variant of a case, in float32, that obey the rule of the shared first half.

    Every block has generators of its own, keyed by (seed, source, name, indices): no block depends on
    another one, on the number of heads or on the batch.
    """

    def __init__(self, source: str, seed: int, variant: int, sizes: Sizes) -> None:
        self.key = (source, seed)
        self.streams = ("calibration",) * 2 if variant == CALIBRATION else ("shared", f"variant {variant}")
        self.sizes = sizes

    def normal(self, width: int, *block: object) -> Float[Tensor, "M width"]:
        """Standard normal numbers, one row a position."""
        return self._draw((width,), block, lambda part, source: part.normal_(generator=source))

    def uniform(self, *block: object) -> Float[Tensor, " M"]:
        """Uniform numbers in [0, 1), one a position."""
        return self._draw((), block, lambda part, source: part.uniform_(generator=source))

    def _draw(
        self, shape: tuple[int, ...], block: tuple[object, ...], fill: Callable[[Tensor, torch.Generator], Tensor]
    ) -> Tensor:
        out = torch.empty(self.sizes.positions, *shape)
        halves = (out[: self.sizes.shared], out[self.sizes.shared :])
        for side, (stream, part) in enumerate(zip(self.streams, halves, strict=True)):
            fill(part, generator(*self.key, stream, side, *block))
        return out


def generator(*key: object) -> torch.Generator:
    """A generator seeded by the key's text, the same on every machine and in every process."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def empty_inputs(sizes: Sizes) -> tuple[Tensor, Tensor, Tensor]:
    """Uninitialised q, k and v; kinds fill them head by head, so that float32 draws need room for one head only."""
    q = torch.empty(sizes.batch, sizes.heads, sizes.queries, sizes.head_dim, dtype=sizes.dtype)
    k = torch.empty(sizes.batch, sizes.kv_heads, sizes.positions, sizes.head_dim, dtype=sizes.dtype)
    v = torch.empty(sizes.batch, sizes.kv_heads, sizes.positions, sizes.value_dim, dtype=sizes.dtype)
    return q, k, v
