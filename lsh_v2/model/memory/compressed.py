"""Compressed memory: tokens that leave the window are mean-pooled into slots, and old slots are pooled again.

Rae et al. 2019, Compressive Transformer, https://arxiv.org/abs/1911.05507, with mean pooling by `rate`. The paper drops
the oldest slots. Here, when there are too many, the oldest are pooled in pairs, weighted by the number of tokens they
represent, so the whole past fits in a fixed number of slots at decreasing resolution.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from lsh_v2.model.memory.base import Memory, Tokens, join


class Slots(NamedTuple):
    """Pooled keys and values, and the number of tokens that each slot represents."""

    k: Float[Tensor, "B G T D"]
    v: Float[Tensor, "B G T E"]
    bare_k: Float[Tensor, "B G T F"]
    counts: Float[Tensor, " T"]


class CompressedMemory(Memory):
    """Holds at most `slots` slots. A new slot is the mean of `rate` tokens; tokens must arrive in multiples of it."""

    def __init__(self, *, slots: int, rate: int) -> None:
        super().__init__()
        self.capacity, self.rate = slots, rate

    def absorb(self, state: Slots | None, leaving: Tokens, q: Float[Tensor, "B H N D"]) -> tuple[Slots, Tokens]:
        pooled = Tokens(*(x.unflatten(2, (-1, self.rate)).mean(3) for x in leaving))
        counts = torch.full((pooled.length,), float(self.rate), device=q.device)
        if state is not None:
            counts = torch.cat((state.counts, counts))
        held = join(None if state is None else Tokens(*state[:3]), pooled)
        excess = held.length - self.capacity
        return (pool_oldest(held, counts, excess) if excess > 0 else Slots(*held, counts)), leaving

    def slots(self, state: Slots | None) -> Tokens | None:
        return None if state is None else Tokens(*state[:3])


def pool_oldest(held: Tokens, counts: Float[Tensor, " T"], pairs: int) -> Slots:
    """Merge the oldest 2·pairs slots two by two, which frees `pairs` slots."""
    old, weights = 2 * pairs, counts[: 2 * pairs].unflatten(0, (-1, 2))
    share = (weights / weights.sum(1, keepdim=True)).unsqueeze(-1)

    def pooled(x: Tensor) -> Tensor:
        merged = (x[:, :, :old].unflatten(2, (-1, 2)) * share.to(x.dtype)).sum(3)
        return torch.cat((merged, x[:, :, old:]), dim=2)

    k, v, bare_k = map(pooled, held)
    return Slots(k, v, bare_k, torch.cat((weights.sum(1), counts[old:])))
