"""Tie-breakers for tokens with equal collision counts: a value in [0, 1] for every token, higher is kept.

Queries are the observing ones of the token's key head. Distances d become 1 / (1 + d), similarities c (1 + c) / 2.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from attentions.common.settings import require
from bmrt.strategies.base import View, wide

PARTS = 4  # number of consecutive parts of the queries, each with its own centroid
RIDGE = 1e-6  # added to variances, relative to their mean


def tie_break(name: str, view: View) -> Float[Tensor, "B G M"]:
    """Apply the tie-breaker of that name to every token of a view."""
    return TIES[name](wide(view.grouped), wide(view.choices))


def require_tie(name: str) -> None:
    """Raise ValueError for an unknown tie-breaker."""
    require(name in TIES, "selector_mode", name, f"one of {', '.join(TIES)}")


def l2(queries: Float[Tensor, "B G Q D"], keys: Float[Tensor, "B G M D"]) -> Float[Tensor, "B G M"]:
    """Nearness to the mean query."""
    return _near((keys - queries.mean(2, keepdim=True)).norm(dim=-1))


def max_sim(queries: Float[Tensor, "B G Q D"], keys: Float[Tensor, "B G M D"]) -> Float[Tensor, "B G M"]:
    """Cosine similarity to the most similar query."""
    return _alike(keys, queries)


def mahalanobis(queries: Float[Tensor, "B G Q D"], keys: Float[Tensor, "B G M D"]) -> Float[Tensor, "B G M"]:
    """Nearness to the mean query in units of the queries' standard deviation per dimension."""
    variance = queries.var(2, keepdim=True, correction=0)
    variance = variance + RIDGE * variance.mean(-1, keepdim=True) + torch.finfo(keys.dtype).tiny
    return _near(((keys - queries.mean(2, keepdim=True)).square() / variance).sum(-1).sqrt())


def partitioned_centroid(queries: Float[Tensor, "B G Q D"], keys: Float[Tensor, "B G M D"]) -> Float[Tensor, "B G M"]:
    """Cosine similarity to the most similar centroid of four consecutive parts of the queries."""
    parts = queries.tensor_split(min(PARTS, queries.shape[2]), dim=2)
    return _alike(keys, torch.stack([part.mean(2) for part in parts], dim=2))


def none(queries: Float[Tensor, "B G Q D"], keys: Float[Tensor, "B G M D"]) -> Float[Tensor, "B G M"]:
    """No preference: later tokens are kept, as always among equals."""
    del queries
    return torch.zeros_like(keys[..., 0])


def _near(distance: Tensor) -> Tensor:
    return 1 / (1 + distance)


def _alike(keys: Tensor, queries: Tensor) -> Tensor:
    cos = normalize(keys, dim=-1) @ normalize(queries, dim=-1).mT
    return (1 + cos.amax(-1)) / 2


TIES: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = MappingProxyType(
    {
        "l2": l2,
        "max_sim": max_sim,
        "mahalanobis": mahalanobis,
        "partitioned_centroid": partitioned_centroid,
        "none": none,
    }
)
