"""Extends a token's score to the tokens that follow it.

Attention finds where an answer begins, but looks for the rest only after reading the beginning. By then, the rest may
already be dropped. So a token's score is the maximum of its own and those of the `trail` tokens before it.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from attentions.common.settings import require

if TYPE_CHECKING:
    from bmrt.strategies.base import View

TRAIL = 16
FADE = 1 / 1024  # score reduction per token of distance: nearer tokens first if not all fit


def require_trail(trail: int) -> None:
    """Raise ValueError for a negative number of tokens."""
    require(trail >= 0, "trail", trail, "an integer of at least 0")


def trailed(scores: Float[Tensor, "B G M"], view: View, trail: int) -> Float[Tensor, "B G M"]:
    """Return the maximum score over each token and the `trail` positions before it; assumes scores of at least 0.

    Anchors do not extend their scores, because a sink would keep whatever follows it; neither does padding.
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
