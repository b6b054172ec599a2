"""What follows a found token stays with it.

Attention finds the place where an answer begins; the rest of it is looked for only once its beginning has been read,
which is too late if it was dropped. So a token's score is the best among itself and the `trail` tokens before it.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from attentions.base import require
from bmrt.strategies.base import View

TRAIL = 16
FADE = 1 / 1024  # of a score a token further on: nearer tokens first, if not all of a trail has room


def require_trail(trail: int) -> None:
    """Raise ValueError for a negative number of tokens."""
    require(trail >= 0, "trail", trail, "an integer of at least 0")


def trailed(scores: Float[Tensor, "B G M"], view: View, trail: int) -> Float[Tensor, "B G M"]:
    """The best score, none below 0, of the tokens at most `trail` positions before each, itself included.

    Anchors pass nothing on: a sink would take what follows it along. Nor does padding.
    """
    M = scores.shape[-1]
    silent = view.anchors if view.hidden is None else view.anchors | view.hidden[:, None, :M]
    scores = scores.masked_fill(silent, -math.inf)
    best = scores.clone()
    for back in range(1, min(trail, M - 1) + 1):
        near = view.positions[..., back:] - view.positions[..., : M - back] <= trail
        before = scores[..., : M - back].masked_fill(~near, -math.inf) * (1 - FADE * back)
        best[..., back:] = torch.maximum(best[..., back:], before)
    return best
