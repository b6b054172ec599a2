"""Softmax attention by its definition, in float64: the building block of every naive reference."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor


def query_positions(queries: int, keys: int, rows: Int[Tensor, " R"] | None, device: torch.device) -> Int[Tensor, " R"]:
    """Positions of all query rows, or of `rows`; queries are the last of the keys' positions."""
    chosen = torch.arange(queries, device=device) if rows is None else rows.to(device)
    return chosen + keys - queries


def causal_pairs(
    queries: int,
    keys: int,
    *,
    causal: bool,
    first: Int[Tensor, " B"] | None,
    rows: Int[Tensor, " R"] | None,
    device: torch.device,
) -> Bool[Tensor, "B 1 R M"]:
    """Which keys each query row may attend to: those at or before it, excluding padding."""
    at = query_positions(queries, keys, rows, device)
    key = torch.arange(keys, device=device)
    pairs = (key <= at[:, None]) if causal else torch.ones(len(at), keys, dtype=torch.bool, device=device)
    if first is None:
        return pairs[None, None]
    real = first.to(device)[:, None]
    return (pairs & (key >= real)[:, None] & (at >= real)[:, :, None])[:, None]


def softmax_attention(
    q: Float[Tensor, "B H N D"],
    k: Float[Tensor, "B G M D"],
    v: Float[Tensor, "B G M E"],
    pairs: Bool[Tensor, "#B #H R M"],
    scale: float,
    *,
    rows: Int[Tensor, " R"] | None = None,
    weight: Shaped[Tensor, "#B #H R M"] | None = None,
) -> Float[Tensor, "B H R E"]:
    """Softmax over the allowed pairs in float64, one head at a time; a row without any pair gives zeros.

    A pair counts `weight` times (multiplicities, sampling weights). The first two axes of `pairs` and `weight` may be
    one.
    """
    chosen = q if rows is None else q[:, :, rows.to(q.device)]
    group = q.shape[1] // k.shape[1]
    heads = []
    for head in range(q.shape[1]):
        kept = pairs[:, min(head, pairs.shape[1] - 1)]
        used = kept.flatten(0, 1).any(0).nonzero().squeeze(1)  # skip keys that no row attends to
        key, value = (x[:, head // group].index_select(1, used).double() for x in (k, v))
        kept = kept.index_select(2, used)
        scores = chosen[:, head].double() @ key.transpose(1, 2) * scale
        if weight is not None:
            times = weight[:, min(head, weight.shape[1] - 1)].index_select(2, used).double()
            scores = scores + times.masked_fill(~kept, 1.0).log()
        empty = ~kept.any(-1, keepdim=True)  # kept finite below, so that no gradient becomes NaN
        weights = torch.softmax(scores.masked_fill(~kept & ~empty, -torch.inf), dim=-1)
        heads.append(weights.masked_fill(empty, 0.0) @ value)
    return torch.stack(heads, dim=1)


def nearest(pairs: Bool[Tensor, "*A M"], future: Bool[Tensor, "*A M"] | None, size: int) -> Bool[Tensor, "*A M"]:
    """Keep the last `size` of each row of `pairs` and the first `size` of `future`, the allowed later keys."""
    rank = pairs.cumsum(-1, dtype=torch.int32)
    kept = pairs & (rank > rank[..., -1:] - size)
    return kept if future is None else kept | future & (future.cumsum(-1, dtype=torch.int32) <= size)
