"""Interface of strategies: what a strategy sees and what it returns.

Axis letters as in `attentions.base`: B batch, H query heads, G key/value heads, D head dimension; here also M tokens
that may be kept, N >= M visible keys, and W observing queries. A question that is only shown to the cache (`probe`)
makes up the last N - M keys; otherwise N = M.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from attentions.common.settings import require


@dataclass(frozen=True)
class View:
    """One layer at the moment when it must drop tokens.

    `queries` (B, H, W, D) are those of the last W of the N key positions; `keys` (B, G, N, D) are as attention sees
    them. `positions` (B, G, M) count a sequence's tokens from 0 without padding, which is below 0; `candidates`
    (B, G, M) marks the tokens to choose from, `anchors` the first tokens, and `hidden` (B, N) padding and empty slots,
    None if there are none. `room` (B, G) is the number of candidates to keep; `carried` (B, G, M) holds the previous
    scores, zero for new tokens; `scale` multiplies q·k; `layer` is the layer's index.
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
        """M, the number of keys that may be kept."""
        return self.positions.shape[-1]

    @property
    def choices(self) -> Float[Tensor, "B G M D"]:
        """The keys that may be kept."""
        return self.keys[:, :, : self.tokens]

    @property
    def grouped(self) -> Float[Tensor, "B G Q D"]:
        """The observing queries of each key head, Q = (H / G)·W."""
        return self.queries.unflatten(1, (self.keys.shape[1], -1)).flatten(2, 3)

    def closed(self) -> Bool[Tensor, "b W N"]:
        """Mask of keys that a query cannot see: later ones and padding; b is B, or 1 without padding."""
        N, W = self.keys.shape[2], self.queries.shape[2]
        later = torch.ones(W, N, dtype=torch.bool, device=self.keys.device).triu(N - W + 1)
        return later[None] if self.hidden is None else later | self.hidden[:, None]


class Strategy(ABC):
    """Scores every token; the highest scores are kept. Subclasses are final and hold settings, not sequence state.

    `observes` is the number of latest queries that the view must hold: 0 for none, None for all of the current chunk.
    `accumulates` means that `score` builds on `carried` and must be called for every chunk.
    """

    observes: int | None = 0
    accumulates: ClassVar[bool] = False

    @abstractmethod
    def score(self, view: View) -> Float[Tensor, "B G M"]:
        """Return a score per token, in float32 or wider; only candidates matter. -inf means no evidence for a token."""


def require_seed(seed: int) -> None:
    """Raise ValueError for a seed from which layers and heads cannot derive their own seeds."""
    require(0 <= seed < 2**31, "seed", seed, "an integer from 0 to 2147483647")


def wide(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Convert to float32, but leave float64 unchanged."""
    return x if x.dtype == torch.float64 else x.float()
