"""What a strategy sees and what it answers.

Axis letters as in `attentions.base`: B batch, H query heads, G key/value heads, D head dimension; here M tokens that
may be kept, N >= M keys in sight, W observing queries. A question that is only shown to the cache (`probe`) makes up
the last N - M keys; otherwise N = M.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from attentions.base import require


@dataclass(frozen=True)
class View:
    """One layer at the moment at which it must drop tokens.

    `queries` (B, H, W, D) are the latest of the keys' N positions; `keys` (B, G, N, D) as attention sees them.
    `positions` (B, G, M) count a sequence's tokens from 0, padding left out, which stands below 0; `candidates`
    (B, G, M) marks what may be chosen, `anchors` the first tokens, `hidden` (B, N) padding and empty places, None where
    there are none. `room` (B, G) is how many candidates will be kept; `carried` (B, G, M) the scores of the last time,
    zero for new tokens; `scale` multiplies q·k; `layer` is its number.
    """

    queries: Float[Tensor, "B H W D"]
    keys: Float[Tensor, "B G N D"]
    positions: Int[Tensor, "B G M"]
    candidates: Bool[Tensor, "B G M"]
    anchors: Bool[Tensor, "B G M"]
    hidden: Bool[Tensor, "B N"] | None
    room: Int[Tensor, "B G"]
    carried: Float[Tensor, "B G M"]
    scale: float
    layer: int

    @property
    def tokens(self) -> int:
        """M: how many of the keys may be kept."""
        return self.positions.shape[-1]

    @property
    def choices(self) -> Float[Tensor, "B G M D"]:
        """The keys that may be kept."""
        return self.keys[:, :, : self.tokens]

    @property
    def grouped(self) -> Float[Tensor, "B G Q D"]:
        """The observing queries of all Q = (H / G)·W that share a key head."""
        return self.queries.unflatten(1, (self.keys.shape[1], -1)).flatten(2, 3)

    def closed(self) -> Bool[Tensor, "b W N"]:
        """Which keys a query cannot see: those after it, and padding; b is B, or 1 without padding."""
        N, W = self.keys.shape[2], self.queries.shape[2]
        later = torch.ones(W, N, dtype=torch.bool, device=self.keys.device).triu(N - W + 1)
        return later[None] if self.hidden is None else later | self.hidden[:, None]


class Strategy(ABC):
    """Gives every token a score; the highest stay. Subclasses are final and hold settings, never a sequence's state.

    `observes` is how many of the latest queries the view must hold: 0 for none, None for all of the chunk at hand.
    `accumulates` says that `score` builds on `carried` and must be called for every chunk.
    """

    observes: int | None = 0
    accumulates: ClassVar[bool] = False

    @abstractmethod
    def score(self, view: View) -> Float[Tensor, "B G M"]:
        """A number for every token, in float32 at least; only candidates' count. -inf: no evidence for this token."""


def require_seed(seed: int) -> None:
    """Raise ValueError for a seed from which layers and heads could not draw their own numbers."""
    require(0 <= seed < 2**31, "seed", seed, "an integer from 0 to 2147483647")


def wide(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """In float32, or in float64 if it was."""
    return x if x.dtype == torch.float64 else x.float()
