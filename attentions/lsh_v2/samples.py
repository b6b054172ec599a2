"""Dissimilarity sampling: one key per stratum represents what a query's buckets leave out.

A coarse hash divides the keys into buckets, and each bucket is divided into `per_bucket` strata by position. Before
each block of queries every stratum has one sampled key, uniform among its keys so far: the one with the smallest random
number, which depends only on seed, head and position. A longer sequence therefore has the same samples, and decoding
needs only the sample, the count and the sum of values of each stratum.

A sample's exponential counts as often as its stratum has keys (or not at all, if the query attends to that key anyway):
an unbiased estimate of the rest of the normaliser. Its value is the mean of the stratum, not the sampled key's own,
because weighting a few values a thousandfold would make the output noisy.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, ClassVar

import torch
from jaxtyping import Int
from torch import Tensor

from attentions.buckets.hashing import splitmix
from attentions.common.derivatives import Gradients, first_order
from attentions.common.windows import Members, Windows
from attentions.lsh_v2.pools import Pools
from attentions.lsh_v2.windows import by_position
from transformer_vq.precision import Selector

NOWHERE = 2**31 - 2  # index of a missing sample: after every key
NEVER = 2**63 - 1  # larger than any key's random number


@dataclass(frozen=True)
class Samples:
    """Samples for `blocks` blocks of queries, by stratum; a missing sample has index NOWHERE, after every key."""

    pools: Pools  # (X, blocks·strata)
    count: Int[Tensor, "X P"]
    blocks: int

    @property
    def strata(self) -> int:
        """Samples per block."""
        return self.count.shape[1] // self.blocks

    def by_position(self) -> Samples:
        """The samples of one block, in order of position."""
        order = self.pools.index.argsort(-1)
        return Samples(self.pools.select(order), self.count.gather(1, order), self.blocks)


@dataclass(frozen=True)
class Reservoir:
    """What sampling must remember of all keys before a block; by stratum."""

    pools: Pools  # `values` holds sums
    draw: Int[Tensor, "X S"]
    count: Int[Tensor, "X S"]

    def rows(self, index: Int[Tensor, " X"]) -> Reservoir:
        """Select rows by `index`."""
        return Reservoir(self.pools.rows(index), self.draw[index], self.count[index])

    def tensors(self) -> tuple[Tensor, ...]:
        """All tensors held."""
        return *self.pools.tensors(), self.draw, self.count

    def detach(self) -> Reservoir:
        """A copy in its own memory, without gradients."""
        pools = Pools(*(x.detach().clone() for x in self.pools.tensors()))
        return Reservoir(pools, self.draw.clone(), self.count.clone())


class Sampler(Selector):
    """Strata and draws. `seed` determines the draws; `heads` are the absolute key/value heads of the rows."""

    added: ClassVar[tuple[str, ...]] = ("_extra_state",)

    def __init__(self, buckets: int, per_bucket: int, seed: int) -> None:
        super().__init__()
        self.strata, self.per_bucket, self.seed = buckets * per_bucket, per_bucket, seed

    def get_extra_state(self) -> Int[Tensor, ""]:
        """Return the seed, which determines every draw."""
        return torch.tensor(self.seed)

    def set_extra_state(self, state: Int[Tensor, ""]) -> None:
        """Use another module's seed."""
        self.seed = int(state)

    def stratum(self, coarse: Int[Tensor, "*shape"], index: Int[Tensor, "*shape"]) -> Int[Tensor, "*shape"]:
        """The stratum of keys with these coarse codes at these pool indices."""
        return coarse * self.per_bucket + index % self.per_bucket

    def draw(self, index: Int[Tensor, "X L"], heads: Int[Tensor, " X"]) -> Int[Tensor, "X L"]:
        """A random 31-bit number for each pool, a function of seed, head and index."""
        stream = splitmix(splitmix(torch.full_like(heads, self.seed)) ^ heads)
        return splitmix(stream[:, None] ^ index) & (2**31 - 1)

    def sample(
        self,
        pools: Pools,
        coarse: Int[Tensor, "X L"],
        heads: Int[Tensor, " X"],
        opens: Int[Tensor, " L"],
        blocks: int,
        before: Reservoir | None = None,
    ) -> tuple[Samples, Reservoir]:
        """Samples of each block, and the reservoir of the last one. A pool counts from block `opens` on."""
        S, held = self.strata, int((opens < blocks).sum())
        pools = pools.keep(held)
        cell = opens[:held] * S + self.stratum(coarse[:, :held], pools.index)
        ticket = self.draw(pools.index, heads) << 32 | torch.arange(held, device=cell.device)
        tickets = torch.full((len(cell), blocks * S), NEVER, device=cell.device)
        tickets = tickets.scatter_reduce(1, cell, ticket, "amin").unflatten(1, (blocks, S))
        count = _per_cell(torch.ones_like(pools.index), cell, blocks, S)
        total = _per_cell(pools.values, cell, blocks, S)
        if before is not None:
            first = torch.where(before.count > 0, before.draw << 32 | torch.arange(S, device=cell.device), NEVER)
            tickets = torch.where(tickets == NEVER, NEVER, tickets + S)
            tickets[:, 0] = torch.minimum(tickets[:, 0], first)
            count[:, 0] += before.count
            total = torch.cat((total[:, :1] + before.pools.values[:, None], total[:, 1:]), 1)
            pools = Pools.cat(before.pools, pools)
        return self._drawn(pools, tickets.cummin(1).values, count.cumsum(1), _RunningSum.apply(total))  # type: ignore

    def _drawn(self, pools: Pools, tickets: Tensor, count: Tensor, total: Tensor) -> tuple[Samples, Reservoir]:
        _, blocks, S = tickets.shape
        there, count, total = (tickets != NEVER).flatten(1), count.flatten(1), total.flatten(1, 2)
        place = torch.where(there, tickets.flatten(1) & (2**32 - 1), 0)
        chosen = pools.with_values(place, total)
        chosen = replace(chosen, index=chosen.index.masked_fill(~there, NOWHERE))
        reservoir = Reservoir(chosen.drop((blocks - 1) * S), tickets[:, -1] >> 32, count[:, -S:])
        mean = total / count.clamp(min=1).unsqueeze(-1)
        return Samples(replace(chosen, values=mean), count, blocks), reservoir


def _per_cell(x: Tensor, cell: Tensor, blocks: int, strata: int) -> Tensor:
    """Sum per block and stratum (X, blocks, strata, ...) of what each block adds."""
    rows = torch.arange(len(x), device=x.device)[:, None] * (blocks * strata)
    into = x.new_zeros(len(x) * blocks * strata, *x.shape[2:])
    into = into.index_add(0, (rows + cell).flatten(), x.flatten(0, 1))
    return into.view(len(x), blocks, strata, *x.shape[2:])


class _RunningSum(torch.autograd.Function):
    """cumsum over axis 1, one block at a time; torch's cumsum walks each column alone and is ten times slower."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        out = x.clone()
        for one, two in pairwise(out.unbind(1)):
            two += one
        return out

    @staticmethod
    @first_order
    def backward(ctx: Any, saved: tuple[Tensor, ...], *grads: Tensor) -> Gradients:
        del saved
        out = grads[0].clone()
        for one, two in pairwise(reversed(out.unbind(1))):
            two += one
        return (out,)


def sample_windows(
    samples: Samples,
    tables: list[Windows],
    index: Int[Tensor, "X L"] | None,
    block: Int[Tensor, " Q"],
    heads: int,
    start: Int[Tensor, " Q"] | None,
    stop: Int[Tensor, " Q"],
) -> list[Windows]:
    """The samples of each query's block, from pool `start` and before pool `stop`, excluding those in its `tables`.

    The windows of `tables` come first, emptied: they tell which pools the query attends to anyway. `index` is that of
    the pools they are windows over, None if each pool is at its own index. With `start`, samples are in order of
    position.
    """
    X, S = len(samples.count), samples.strata
    order = samples.pools.index.int()
    queries = by_position(len(block), heads, block.device).int().expand(X, -1).contiguous()
    nothing = torch.zeros(X, len(block), dtype=torch.int32, device=block.device)
    found = []
    for table, codes in zip(tables, samples.pools.codes[: len(tables)], strict=True):
        m = table.members
        assert m is not None, "windows of buckets must have members"
        oldest, newest = m.oldest, m.newest
        if index is not None:
            last = index.shape[1] - 1
            empty = oldest > last
            oldest = index.gather(1, oldest.long().clamp(max=last)).masked_fill(empty, NOWHERE).int()
            newest = index.gather(1, newest.long().clamp(0, last)).masked_fill(empty, -1).int()
        members = Members(codes.int(), m.query_code, m.shift, oldest, newest)
        found.append(Windows(order, queries, nothing, nothing, members, by_rank=True))
    first, last = (block * S).int().expand(X, -1), (block * S + S).int().expand(X, -1)
    if start is not None:
        first = torch.searchsorted(samples.pools.index, start.expand(X, -1).contiguous()).int()
    before = stop.int().expand(X, -1).contiguous()
    return [*found, Windows(order, queries, first.contiguous(), last.contiguous(), before=before, by_rank=True)]
