"""Views made by hand, and the definitions they are compared with."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from bmrt.strategies import View

B, H, G, D, M, W = 2, 4, 2, 8, 37, 5
ROOM = 10


def view(
    seed: int = 0, *, tokens: int = M, queries: int = W, heads: int = H, question: int = 0, **changes: Any
) -> View:
    """Random queries and keys in float64; the first two tokens are anchors, the last `queries` the window."""
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw, dtype=torch.float64)

    positions = torch.arange(tokens).expand(B, G, -1)
    anchors = positions < 2
    made: dict[str, Any] = {
        "queries": normal(B, heads, queries, D) * 2,
        "keys": normal(B, G, tokens + question, D),
        "positions": positions,
        "candidates": ~anchors & (positions < tokens - (0 if question else queries)),
        "anchors": anchors,
        "hidden": None,
        "room": torch.full((B, G), ROOM),
        "carried": torch.zeros(B, G, tokens, dtype=torch.float64),
        "scale": 0.4,
        "layer": 1,
    }
    return View(**(made | changes))


def dense_mass(v: View) -> Tensor:
    """Column sums of the whole softmax matrix, by its definition."""
    total = torch.zeros(B, G, v.keys.shape[2], dtype=torch.float64)
    N, W = v.keys.shape[2], v.queries.shape[2]
    group = v.queries.shape[1] // G
    for b in range(B):
        for h in range(v.queries.shape[1]):
            for w in range(W):
                sees = [j for j in range(N - W + w + 1) if v.hidden is None or not v.hidden[b, j]]
                if sees:
                    scores = [float(v.queries[b, h, w] @ v.keys[b, h // group, j]) * v.scale for j in sees]
                    weights = [math.exp(s - max(scores)) for s in scores]
                    total[b, h // group, sees] += torch.tensor(weights, dtype=torch.float64) / sum(weights)
    return total[..., : v.tokens]
