"""The interface of input kinds: sizes, two sets that share their first half, and seeded random draws.

Axis letters as in `attentions.base`: B batch, H query heads, G key/value heads, N queries, M positions (keys), D
query/key dimension, E value dimension. X is the width of a layer, H·D.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

if TYPE_CHECKING:
    from harness.common.rows import Case

CALIBRATION = 2  # the variant from which methods learn, for example codebooks
CALIBRATION_LIMIT = 16_384


@dataclass(frozen=True)
class Inputs:
    """One set of inputs on the CPU: q (B, H, N, D), k (B, G, M, D), v (B, G, M, E). `meta` is JSON-able data."""

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
    """Sizes of q, k and v: N = M = n; in decode mode one query follows n keys, so N = 1 and M = n + 1.

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
        """Return q, k and v of a case at kernel level. Raises ValueError if the source cannot provide them."""

    @abstractmethod
    def hidden(self, case: Case, variant: int) -> Float[Tensor, "B M X"]:
        """Return x of a case at layer level: every position; in decode mode the new one is last."""

    def why_not(self, case: Case) -> str:
        """Return "" if the source can provide this case's inputs, else one plain sentence; cheap, for planning."""
        del case
        return ""

    def identity(self) -> str:
        """Return a hash of everything that decides these inputs besides the case and this package's code, or ""."""
        return ""


class Draws:
    """Random float32 numbers of one variant of a case; variants 0 and 1 share their first half.

    Every block has its own generators, keyed by (seed, source, name, indices), so no block depends on another one, on
    the number of heads or on the batch.
    """

    def __init__(self, source: str, seed: int, variant: int, sizes: Sizes) -> None:
        self.key = (source, seed)
        self.streams = ("calibration",) * 2 if variant == CALIBRATION else ("shared", f"variant {variant}")
        self.sizes = sizes

    def normal(self, width: int, *block: object) -> Float[Tensor, "M width"]:
        """Standard normal numbers, one row per position."""
        return self._draw((width,), block, lambda part, source: part.normal_(generator=source))

    def uniform(self, *block: object) -> Float[Tensor, " M"]:
        """Uniform numbers in [0, 1), one per position."""
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
    """Return a generator seeded by the key's text, the same on every machine and in every process."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def empty_inputs(sizes: Sizes) -> tuple[Tensor, Tensor, Tensor]:
    """Return uninitialised q, k and v; kinds fill them head by head, so float32 draws need memory for one head only."""
    q = torch.empty(sizes.batch, sizes.heads, sizes.queries, sizes.head_dim, dtype=sizes.dtype)
    k = torch.empty(sizes.batch, sizes.kv_heads, sizes.positions, sizes.head_dim, dtype=sizes.dtype)
    v = torch.empty(sizes.batch, sizes.kv_heads, sizes.positions, sizes.value_dim, dtype=sizes.dtype)
    return q, k, v
