"""Selects the tokens of a layer to keep: mandatory ones first, then the best scores, and padding last."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def keep(
    scores: Float[Tensor, "B G M"],
    forced: Bool[Tensor, "B G M"],
    hidden: Bool[Tensor, "B G M"],
    count: int,
    own: Int[Tensor, "B 1 1"] | int | None = None,
) -> Int[Tensor, "B G count"]:
    """Return the `count` indices to keep per sequence and head, ascending; leading -1 if a row's `own` is smaller.

    Forced tokens come first, then the highest scores, then hidden ones. Equal scores prefer the later index, so that a
    strategy without a preference is not biased towards old tokens. A score of -inf means "no evidence" and still ranks
    above hidden tokens. Raises ValueError for NaN scores, so that a scoring error is not mistaken for a choice.
    """
    if scores.isnan().any():
        raise ValueError("a strategy gave NaN scores, so no selection is possible")
    floor = torch.finfo(scores.dtype).min
    priority = scores.clamp(min=floor, max=-floor).masked_fill(forced, torch.inf).masked_fill(hidden, -torch.inf)
    best = priority.flip(-1).sort(dim=-1, descending=True, stable=True).indices[..., :count]
    index = scores.shape[-1] - 1 - best
    if own is not None:
        index = index.masked_fill(torch.arange(count, device=index.device) >= own, -1)
    return index.sort(dim=-1).values


def take(x: Float[Tensor, "B G M D"], index: Int[Tensor, "B G K"]) -> Float[Tensor, "B G K D"]:
    """Select rows by index, separately for each sequence and head."""
    return x.gather(2, index.unsqueeze(-1).expand(*index.shape, x.shape[-1]))
