"""Selects the keys each query attends to: sorted blocks and shared samples, as tables of row numbers."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from einops import repeat
from jaxtyping import Float, Int
from torch import Tensor

from hyper_attn.utils import RecursionLevel, slots

# Elements of queries, keys and values gathered at once: 32 MiB of float32, about a last-level cache. A quarter of that
# is 5 % faster on one thread, but each slab costs a dozen barriers between threads, which are slow on a busy machine.
SLAB = 2**23
LAST = 2**30  # sorts after every code


@dataclass(frozen=True)
class BlockTable:
    """One block per row: its queries and keys as rows of the flattened inputs, and the bias of its scores.

    An empty query slot holds the total number of queries; an empty key slot has a bias of -inf.
    """

    query: Int[Tensor, "P S"]
    key: Int[Tensor, "P L"]
    bias: Float[Tensor, "P 1 1 L"]

    def slabs(self, width: int) -> Iterator[BlockTable]:
        """Split the table into pieces whose gathered rows stay in cache."""
        step = max(1, SLAB // ((self.query.shape[1] + 2 * self.key.shape[1]) * width))
        pieces = zip(self.query.split(step), self.key.split(step), self.bias.split(step), strict=True)
        return (BlockTable(*piece) for piece in pieces)


@dataclass(frozen=True)
class Selection:
    """Squares with their codes and draws; tables are rebuilt on each request."""

    levels: list[RecursionLevel]
    draws: list[Int[Tensor, "H _ m"]]
    q_codes: Int[Tensor, "B H N"]
    k_codes: Int[Tensor, "B G M"]

    def tables(self, dtype: torch.dtype) -> Iterator[BlockTable]:
        """Yield one table per level."""
        for level, draws in zip(self.levels, self.draws, strict=True):
            query = queries_of(level, self.q_codes)
            key, bias = keys_of(level, self.k_codes, draws.to(query.device), dtype)
            bias = bias.expand(len(query), -1, -1, -1, -1)
            yield BlockTable(query.flatten(0, 3), key.flatten(0, 3), bias.flatten(0, 3)[:, None, None])


def queries_of(level: RecursionLevel, codes: Int[Tensor, "B H N"]) -> Int[Tensor, "B H squares blocks S"]:
    """Row numbers of each block's queries, B·H·N for empty slots."""
    B, H, N = codes.shape
    _, start, count = torch.tensor(level.squares, device=codes.device).T
    place = torch.arange(int(count.max()), device=codes.device)
    order = sorted_places(level, codes, start, count, place)
    rank, real = slots(count, level.blocks)
    order = order.gather(3, rank.flatten(1).expand(B, H, -1, -1)).unflatten(3, rank.shape[1:])
    head = torch.arange(B * H, device=codes.device).view(B, H, 1, 1, 1)
    return (order + head * N + start[:, None, None]).masked_fill(~real, B * H * N)


def keys_of(
    level: RecursionLevel, codes: Int[Tensor, "B G M"], draws: Int[Tensor, "H squares m"], dtype: torch.dtype
) -> tuple[Int[Tensor, "B H squares blocks L"], Float[Tensor, "1 H squares blocks L"]]:
    """Row numbers of each block's own and sampled keys, and log-weights: -inf for empty slots and own samples."""
    B, G, M = codes.shape
    H, C, m = draws.shape
    start = torch.tensor(level.squares, device=codes.device)[:, 0]
    count = torch.tensor([level.keys], device=codes.device)
    order = sorted_places(level, codes, start, count, torch.arange(level.keys, device=codes.device))
    head = torch.arange(B * G, device=codes.device).view(B, G, 1, 1)
    order = repeat(order + head * M + start[:, None], "B G C K -> B (G group) C K", group=H // G)
    rank, real = slots(count, level.blocks)
    own = order[..., rank[0]]
    weight = torch.zeros(real[0].shape, dtype=dtype, device=codes.device).masked_fill(~real[0], -torch.inf)
    weight = weight.expand(1, H, C, -1, -1)
    if level.blocks == 1 or not m:  # every draw would be in the own block, or there are no draws
        return own, weight
    drawn = order.gather(3, draws.expand(B, -1, -1, -1)).unsqueeze(3).expand(-1, -1, -1, level.blocks, -1)
    block = torch.arange(level.blocks, device=codes.device).unsqueeze(-1)
    inside = (draws * level.blocks // level.keys).unsqueeze(2) == block
    sampled = torch.full(inside.shape, math.log(level.keys / m), dtype=dtype, device=codes.device)
    sampled = sampled.masked_fill_(inside, -torch.inf).unsqueeze(0)
    return torch.cat((own, drawn), dim=-1), torch.cat((weight, sampled), dim=-1)


def sorted_places(
    level: RecursionLevel,
    codes: Int[Tensor, "B H N"],
    start: Int[Tensor, " squares"],
    count: Int[Tensor, " count"],
    place: Int[Tensor, " K"],
) -> Int[Tensor, "B H squares K"]:
    """Places within each square in code order; places from `count` on come last."""
    if level.blocks == 1:  # the order does not matter
        return place.expand(*codes.shape[:2], len(start), -1)
    inside = codes[:, :, (start[:, None] + place).clamp(max=codes.shape[2] - 1)]
    return inside.masked_fill(place >= count[:, None], LAST).sort(dim=-1, stable=True).indices
