"""What LSH v2 computes, by its definition: one softmax over dense masks, head by head, in float64.

For a query, the keys of its band count once; outside the band, of each round the `window` pools of the query's code
nearest to it, each pool once with + log f in the logit; and of the rest the sample of each stratum, with + log f and
+ log of the stratum's size, beside the stratum's mean value.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from attentions.lsh_v2.estimate import Settings
from attentions.lsh_v2.hashing import LearnedHash
from attentions.lsh_v2.levels import Level, band, pooled
from attentions.lsh_v2.samples import Sampler


@dataclass(frozen=True)
class Support:
    """What the named rows of one query head meet: `near` keys, `own` pools and, by row, `sample` pools.

    `size` is the number of pools of a sample's stratum, zero where the row does not meet it, and `mean` the
    stratum's mean value, both of the row's block.
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
    settings: Settings,
    hashing: LearnedHash,
    sampler: Sampler | None,
) -> Iterator[Support]:
    """The support of each query head in turn."""
    M, at = k.shape[2], rows + k.shape[2] - q.shape[2]
    position = torch.arange(M, device=q.device)
    for level in levels:
        near = band(at, M, level.factor, settings.local, causal=settings.causal)
        inside = (near.start[:, None] <= position) & (position < near.stop[:, None])
        pool = torch.arange(M // level.factor, device=q.device)
        before, after = pool < near.before[:, None], pool >= near.after[:, None]
        keys = pooled(k[:, level.kv_heads], level.factor)
        values = pooled(v[:, level.kv_heads].double(), level.factor)
        of_q, of_k = hashing(q[:, level.heads], level.kv_heads)[:, :, :, rows], hashing(keys, level.kv_heads)
        for one in range(level.heads.stop - level.heads.start):
            head, g = level.heads.start + one, one // level.group
            own = torch.zeros(len(q), len(rows), len(pool), dtype=torch.bool, device=q.device)
            for a, b in zip(of_q[: settings.rounds, :, one], of_k[: settings.rounds, :, g], strict=True):
                same = a[:, :, None] == b[:, None]
                own |= _last(same & before, settings.window)
                own |= _last((same & after).flip(-1), settings.window).flip(-1)
            sample = torch.zeros(len(q), len(rows), 0, dtype=torch.long, device=q.device)
            size, mean = sample, sample.double().unsqueeze(-1).expand(-1, -1, -1, v.shape[3])
            if sampler is not None and len(pool):
                coarse, key_head = hashing.coarse(of_k[:, :, g]), level.kv_heads.start + g
                block = at // settings.block * settings.block if settings.causal else torch.full_like(at, M)
                known = block // level.factor
                sample, size, mean = _strata(values[:, g], coarse, key_head, known, sampler)
                met = (before | after).expand_as(own) & ~own
                size = size * met.gather(2, sample)
            yield Support(head, level.factor, inside.expand(len(q), -1, -1), own, sample, size, mean)


def _last(pairs: Bool[Tensor, "B R P"], count: int) -> Bool[Tensor, "B R P"]:
    return pairs & (pairs.flip(-1).cumsum(-1).flip(-1) <= count)


def _strata(
    values: Float[Tensor, "B P E"], coarse: Int[Tensor, "B P"], head: int, known: Int[Tensor, " R"], sampler: Sampler
) -> tuple[Tensor, Tensor, Tensor]:
    """Sample, size and mean value of each stratum among the first `known` pools of each row."""
    B, P, E = values.shape
    index = torch.arange(P, device=values.device).expand(B, -1)
    stratum = sampler.stratum(coarse, index)
    ticket = sampler.draw(index, torch.full((B,), head, device=values.device)) * 2**32 + index
    distinct, back = known.unique(return_inverse=True)
    found = []
    for count in distinct.tolist():
        cell, shape = stratum[:, :count], (B, sampler.strata)
        size = torch.zeros(shape, dtype=torch.long, device=values.device).scatter_add(1, cell, torch.ones_like(cell))
        least = torch.full(shape, 2**63 - 1, device=values.device).scatter_reduce(1, cell, ticket[:, :count], "amin")
        total = values.new_zeros(*shape, E).scatter_add(1, cell.unsqueeze(-1).expand(-1, -1, E), values[:, :count])
        sample = torch.where(size > 0, least % 2**32, 0)
        found.append((sample, size, total / size.clamp(min=1).unsqueeze(-1)))
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
    q, k, v = q.double(), k.double(), v.double()
    pools, pooled_values = pooled(k, support.factor), pooled(v, support.factor)
    compressed = q @ pools.mT * scale + torch.tensor(support.factor, dtype=torch.float64).log()
    sampled = support.size > 0
    logits = (
        (q @ k.mT * scale).masked_fill(~support.near, -torch.inf),
        compressed.masked_fill(~support.own, -torch.inf),
        (compressed.gather(2, support.sample) + support.size.clamp(min=1).double().log()).masked_fill(
            ~sampled, -torch.inf
        ),
    )
    near, own, drawn = torch.cat(logits, -1).softmax(-1).split([x.shape[-1] for x in logits], -1)
    return near @ v + own @ pooled_values + torch.einsum("brs,brse->bre", drawn, support.mean)
