"""One heavy key per query, at a random distance before it, with about half of the softmax weight.

Keys are standard normal. Query i has the heavy key j, uniform over the positions before i (query 0 has its own), and is
q = r + t·√D·k_j/|k_j|², where r is standard normal without its component along k_j. So with the usual scale 1/√D the
heavy score is exactly t, and the other keys' scores are normal with variance s² = (t² /|k_j|²) + |r|²/D. The sum of
their exponentials is c·exp(s²/2) on average, where c is their number. t solves

    t = ln c + s²/2,    that is    t = (1 - √(1 - 2a(ln c + |r|²/2D))) / a    with    a = 1/|k_j|²,

so the heavy key weighs as much as all others together in expectation. If D is below about 2·ln c + 1, no t does that,
and the nearest one, 1/a, is used. The cosine between a query and its heavy key is t/√(t² + D), about 0.7 to 0.9 for D =
64: a hash must find the key, because neither recency nor random sampling will.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from harness.inputs.base import Draws, InputKind, Inputs, Sizes, empty_inputs, sizes_of
from harness.inputs.gaussian import Gaussian

if TYPE_CHECKING:
    from harness.common.rows import Case


class Planted(InputKind):
    """Heavy keys as above, with standard normal values. A layer gets Gaussian x: its projections plant nothing."""

    def make(self, case: Case, variant: int) -> Inputs:
        sizes = sizes_of(case, variant)
        draws = Draws("planted", case.seed, variant, sizes)
        q, k, v = empty_inputs(sizes)
        competitors = competing_keys(sizes, case.causal)
        for b in range(sizes.batch):
            for g in range(sizes.kv_heads):
                keys = draws.normal(sizes.head_dim, "k", b, g)
                k[b, g] = keys
                v[b, g] = draws.normal(sizes.value_dim, "v", b, g)
                for h in range(g * sizes.group, (g + 1) * sizes.group):
                    noise = draws.normal(sizes.head_dim, "q", b, h)[-sizes.queries :]
                    q[b, h] = plant(noise, keys[_heavy(draws, sizes, b, h)], competitors)
        return Inputs(q, k, v)

    def hidden(self, case: Case, variant: int) -> Float[Tensor, "B M X"]:
        return Gaussian().hidden(case, variant)


def heavy_keys(case: Case, variant: int) -> Int[Tensor, "B H N"]:
    """Return the position of each query's heavy key."""
    sizes = sizes_of(case, variant)
    draws = Draws("planted", case.seed, variant, sizes)
    rows = [[_heavy(draws, sizes, b, h) for h in range(sizes.heads)] for b in range(sizes.batch)]
    return torch.stack([torch.stack(row) for row in rows])


def plant(
    noise: Float[Tensor, "N D"], keys: Float[Tensor, "N D"], competitors: Float[Tensor, " N"]
) -> Float[Tensor, "N D"]:
    """Return queries whose scores with `keys`, row by row, balance `competitors` normal keys; modifies `noise`."""
    D = keys.shape[-1]
    a = keys.square().sum(-1).reciprocal()
    noise.addcmul_(keys, ((noise * keys).sum(-1) * a)[:, None], value=-1)
    spread = noise.square().sum(-1) / D
    score = (1 - (1 - 2 * a * (competitors.log() + spread / 2)).clamp(min=0).sqrt()) / a
    return noise.addcmul_(keys, (score * a * math.sqrt(D))[:, None])


def competing_keys(sizes: Sizes, causal: bool) -> Float[Tensor, " N"]:
    """Return how many keys a query attends to besides its heavy one; at least one, so that the logarithm exists."""
    at = _positions(sizes)
    others = at if causal else torch.full_like(at, sizes.positions - 1)
    return others.clamp(min=1).float()


def _positions(sizes: Sizes) -> Int[Tensor, " N"]:
    return torch.arange(sizes.positions - sizes.queries, sizes.positions)


def _heavy(draws: Draws, sizes: Sizes, b: int, h: int) -> Int[Tensor, " N"]:
    at = _positions(sizes)
    share = draws.uniform("heavy", b, h)[-sizes.queries :]
    return torch.minimum((share.double() * at).long(), (at - 1).clamp(min=0))
