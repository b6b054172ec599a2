"""LSH v2 by its definition: one softmax over dense masks, head by head, in float64.

For each query: keys of its band count once. Outside the band, each round selects the `window` pools nearest to the
query that have its code; each selected pool counts once, with + log f in the logit. From the rest, each stratum
contributes its sample, with + log f and + log of the stratum's size in the logit and the stratum's mean value.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from attentions.common.reference import nearest
from attentions.lsh_v2.levels import Level, band, pooled

if TYPE_CHECKING:
    from attentions.lsh_v2.estimate import EstimateSettings
    from attentions.lsh_v2.hashing import LearnedHash
    from attentions.lsh_v2.samples import Sampler


@dataclass(frozen=True)
class Support:
    """What the selected rows of one query head attend to: `near` keys, `own` pools and, per row, `sample` pools.

    `size` is the number of pools in a sample's stratum, zero if the row does not use it, and `mean` is the stratum's
    mean value. Both are those of the row's block.
    """

    head: int
    factor: int
    near: Bool[Tensor, "B R M"]
    own: Bool[Tensor, "B R P"]
    sample: Int[Tensor, "B R S"]
    size: Int[Tensor, "B R S"]
    mean: Float[Tensor, "B R S E"]


def supports(
    q: Float[Tensor, "B H N D"],
    k: Float[Tensor, "B G M D"],
    v: Float[Tensor, "B G M E"],
    rows: Int[Tensor, " R"],
    levels: list[Level],
    settings: EstimateSettings,
    hashing: LearnedHash,
    sampler: Sampler | None,
) -> Iterator[Support]:
    """Yield the support of each query head."""
    M, at = k.shape[2], rows + k.shape[2] - q.shape[2]
    position = torch.arange(M, device=q.device)
    for level in levels:
        near = band(at, M, level.factor, settings.local, causal=settings.causal)
        inside = (near.start[:, None] <= position) & (position < near.stop[:, None])
        pool = torch.arange(M // level.factor, device=q.device)
        before, after = pool < near.before[:, None], pool >= near.after[:, None]
        keys = pooled(k[:, level.kv_heads], level.factor)
        of_q, of_k = hashing(q[:, level.heads], level.kv_heads)[:, :, :, rows], hashing(keys, level.kv_heads)
        for one in range(level.heads.stop - level.heads.start):
            head, g = level.heads.start + one, one // level.group
            own = torch.zeros(len(q), len(rows), len(pool), dtype=torch.bool, device=q.device)
            for a, b in zip(of_q[: settings.rounds, :, one], of_k[: settings.rounds, :, g], strict=True):
                same = a[:, :, None] == b[:, None]
                own |= nearest(same & before, None if settings.causal else same & after, settings.window)
            sample = torch.zeros(len(q), len(rows), 0, dtype=torch.long, device=q.device)
            size, mean = sample, sample.double().unsqueeze(-1).expand(-1, -1, -1, v.shape[3])
            if sampler is not None and len(pool):
                coarse, key_head = hashing.coarse(of_k[:, :, g]), level.kv_heads.start + g
                block = at // settings.block * settings.block if settings.causal else torch.full_like(at, M)
                known = block // level.factor
                values = pooled(v[:, key_head].double(), level.factor)
                sample, size, mean = _strata(values, coarse, key_head, known, sampler)
                outside = (before | after).expand_as(own)
                size = size * (outside.gather(2, sample) & ~own.gather(2, sample))
            yield Support(head, level.factor, inside.expand(len(q), -1, -1), own, sample, size, mean)


def _strata(
    values: Float[Tensor, "B P E"], coarse: Int[Tensor, "B P"], head: int, known: Int[Tensor, " R"], sampler: Sampler
) -> tuple[Tensor, Tensor, Tensor]:
    """Sample, size and mean value of each stratum among the first `known` pools of each row."""
    index = torch.arange(values.shape[1], device=values.device).expand(len(values), -1)
    stratum = sampler.stratum(coarse, index)
    ticket = sampler.draw(index, torch.full((len(values),), head, device=values.device)) * 2**32 + index
    shape = (len(values), sampler.strata)
    size = torch.zeros(shape, dtype=torch.long, device=values.device)
    least, total = torch.full_like(size, 2**63 - 1), values.new_zeros(*shape, values.shape[2])
    counts, back = known.unique(return_inverse=True)
    found = []
    for new in pairwise([0, *counts.tolist()]):  # later rows include what earlier rows know
        of, cell = slice(*new), stratum[:, slice(*new)]
        size = size.scatter_add(1, cell, torch.ones_like(cell))
        least = least.scatter_reduce(1, cell, ticket[:, of], "amin")
        total = total.scatter_add(1, cell.unsqueeze(-1).expand(-1, -1, total.shape[2]), values[:, of])
        found.append((torch.where(size > 0, least % 2**32, 0), size, total / size.clamp(min=1).unsqueeze(-1)))
    sample, size, mean = (torch.stack(x, dim=1)[:, back] for x in zip(*found, strict=True))
    return sample, size, mean


def softmax(
    support: Support,
    q: Float[Tensor, "B R D"],
    k: Float[Tensor, "B M D"],
    v: Float[Tensor, "B M E"],
    scale: float,
) -> Float[Tensor, "B R E"]:
    """The output of one head's rows, in float64."""
    q, near, used = q.double(), *(met.flatten(0, 1).any(0) for met in (support.near, support.own))
    used[support.sample.flatten()] = True
    (near,), (at,), place = near.nonzero(as_tuple=True), used.nonzero(as_tuple=True), used.cumsum(0) - 1
    pools, pooled_values = (_pools(x, support.factor, at) for x in (k, v))
    compressed = q @ pools.mT * scale + torch.tensor(support.factor, dtype=torch.float64).log()
    drawn = compressed.gather(2, place[support.sample]) + support.size.clamp(min=1).double().log()
    logits = (
        (q @ k[:, near].double().mT * scale).masked_fill(~support.near[:, :, near], -torch.inf),
        compressed.masked_fill(~support.own[:, :, at], -torch.inf),
        drawn.masked_fill(support.size == 0, -torch.inf),
    )
    of_near, of_own, of_drawn = torch.cat(logits, -1).softmax(-1).split([x.shape[-1] for x in logits], -1)
    return (
        of_near @ v[:, near].double() + of_own @ pooled_values + torch.einsum("brs,brse->bre", of_drawn, support.mean)
    )


def _pools(x: Float[Tensor, "B M W"], factor: int, at: Int[Tensor, " K"]) -> Float[Tensor, "B K W"]:
    """Compute only these pools; keys that no row attends to cost nothing."""
    return x[:, at[:, None] * factor + torch.arange(factor, device=x.device)].double().mean(2)
