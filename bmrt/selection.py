"""Which tokens of a layer stay: those that must, then the best scores, never padding while anything else is there."""

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
    """The `count` indices to keep for each sequence and head, ascending; -1, first, where a row's `own` is smaller.

    Forced ones first, then the highest scores, hidden ones last; of equal scores the later index, so that a strategy
    without an opinion is not biased towards old tokens. A score of -inf means "no evidence" and still comes before
    what is hidden. Raises ValueError for a score that is no number: a mistake in scoring must not pass for a choice.
    """
    if scores.isnan().any():
        raise ValueError("a strategy gave scores that are not numbers (NaN), so nothing can be chosen by them")
    floor = torch.finfo(scores.dtype).min
    priority = scores.clamp(min=floor, max=-floor).masked_fill(forced, torch.inf).masked_fill(hidden, -torch.inf)
    best = priority.flip(-1).sort(dim=-1, descending=True, stable=True).indices[..., :count]
    index = scores.shape[-1] - 1 - best
    if own is not None:
        index = index.masked_fill(torch.arange(count, device=index.device) >= own, -1)
    return index.sort(dim=-1).values


def take(x: Float[Tensor, "B G M D"], index: Int[Tensor, "B G K"]) -> Float[Tensor, "B G K D"]:
    """Rows by index, for each sequence and head its own."""
    return x.gather(2, index.unsqueeze(-1).expand(*index.shape, x.shape[-1]))
