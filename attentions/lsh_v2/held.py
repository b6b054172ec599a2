"""The pools that a stream holds, with room to append and lookup by code without a search.

For each round and code, a ring stores the slots of the last `window` pools. A pool in no ring is dead: no later query
can attend to it. If there is no room left, dead pools are dropped and the capacity grows by a share of the live pools,
so the amortised number of pools copied per token is constant.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from attentions.lsh_v2.pools import Pools, rows_at


@dataclass(frozen=True)
class Rings:
    """Per code: `place`, the slots of its last `window` pools (-1 for none), and `count`, how many it has had."""

    place: Int[Tensor, "X rounds codes window"]
    count: Int[Tensor, "X rounds codes"]

    @staticmethod
    def of(codes: Int[Tensor, "rounds X L"], buckets: int, window: int) -> Rings:
        """Build the rings for pools in order of position; code -1 belongs to no pool."""
        ordered, order = torch.sort(codes.movedim(0, 1).contiguous(), stable=True)
        rank = torch.arange(codes.shape[2], device=codes.device)
        begin, end = torch.searchsorted(ordered, ordered), torch.searchsorted(ordered, ordered, right=True)
        x, r, at = ((end - rank <= window) & (ordered >= 0)).nonzero(as_tuple=True)
        shape = (codes.shape[1], codes.shape[0], buckets)
        place = torch.full((*shape, window), -1, dtype=torch.int32, device=codes.device)
        place[x, r, ordered[x, r, at], (rank - begin)[x, r, at] % window] = order[x, r, at].int()
        count = torch.zeros(shape, dtype=torch.int64, device=codes.device)
        return Rings(place, count.scatter_add_(2, ordered.clamp(min=0), (ordered >= 0).long()))

    def add(self, codes: Int[Tensor, "rounds X"], place: int) -> None:
        """Add one pool per row at slot `place`, overwriting the oldest in its rings."""
        ring = (*self._rows_and_rounds(), codes.mT)
        self.place[*ring, self.count[ring] % self.place.shape[3]] = place
        self.count[ring] += 1

    def find(self, codes: Int[Tensor, "rounds X heads"]) -> Int[Tensor, "X heads K"]:
        """Slots of the pools in each query's buckets, ascending, repeated per round that found them; -1 for none."""
        x, r = self._rows_and_rounds()
        return self.place[x.unsqueeze(1), r, codes.permute(1, 2, 0)].flatten(2).long().sort().values

    def alive(self, pools: int) -> Bool[Tensor, "X pools"]:
        """Which of the first `pools` slots appear in some ring."""
        named = torch.zeros(len(self.place), pools + 1, dtype=torch.bool, device=self.place.device)
        return named.scatter_(1, self.place.flatten(1).long() + 1, True)[:, 1:]

    def moved(self, to: Int[Tensor, "X L"]) -> Rings:
        """The same rings after each pool has moved to another slot."""
        place = F.pad(to, (1, 0), value=-1).gather(1, self.place.flatten(1).long() + 1)
        return Rings(place.int().view_as(self.place), self.count)

    def rows(self, index: Int[Tensor, " X"]) -> Rings:
        """Select rows by `index`."""
        return Rings(self.place[index], self.count[index])

    def _rows_and_rounds(self) -> tuple[Tensor, Tensor]:
        X, rounds = self.place.shape[:2]
        return torch.arange(X, device=self.place.device)[:, None], torch.arange(rounds, device=self.place.device)


@dataclass(frozen=True)
class Found:
    """Pools in the queries' buckets. `index` ascends; -1 means none, and pools found by several rounds repeat."""

    keys: Float[Tensor, "X R K D"]
    values: Float[Tensor, "X R K E"]
    index: Int[Tensor, "X R K"]


class Held:
    """Pools before the band, in order of position; rows with fewer pools than others start with index -1."""

    def __init__(self, rounds: int, buckets: int, window: int) -> None:
        self._rounds, self._buckets, self._window = rounds, buckets, window
        self._room: Pools | None = None  # allocated once dtype and device are known
        self._rings: Rings | None = None
        self._count = self._alive = 0  # pools, and how many were alive when dead pools were last dropped

    @property
    def pools(self) -> Pools | None:
        """View of all pools; None if there are none."""
        return self._room.keep(self._count) if self._room and self._count else None

    @property
    def bytes(self) -> int:
        """Bytes of pools, unused capacity and rings."""
        room = () if self._room is None else self._room.tensors()
        rings = () if self._rings is None else (self._rings.place, self._rings.count)
        return sum(x.numel() * x.itemsize for x in (*room, *rings))

    def take(self, pools: Pools) -> None:
        """Replace the pools. The first `pools` are copied, because they may be the caller's memory."""
        self._room, self._count, self._rings = pools, pools.index.shape[1], None
        if self._count > 2 * self._alive:
            self._room = self._without_dead(pools)

    def append(self, pool: Pools) -> None:
        """Append one pool per row, later than all others."""
        if self._rounds == 0:
            return
        if self._room is None:
            self._room = pool.keep(0)
        if self._count == self._room.index.shape[1]:
            self._room = self._without_dead(self._room).widened(self._count + self._count // 4 + 1)
        self._rings_of(self._room).add(pool.codes[: self._rounds, :, 0], self._count)
        self._room.put(self._count, pool)
        self._count += 1

    def find(self, codes: Int[Tensor, "rounds X R"]) -> Found | None:
        """The pools that queries with these codes attend to; None if there are no pools."""
        if self._room is None or self._count == 0:
            return None
        places = self._rings_of(self._room).find(codes[: self._rounds])
        at, shape = places.clamp(min=0).flatten(1), places.shape[1:]
        keys, values = (rows_at(x, at).unflatten(1, shape) for x in (self._room.keys, self._room.values))
        index = self._room.index.gather(1, at).view_as(places)
        return Found(keys, values, index.masked_fill(places < 0, -1))

    def keep_rows(self, index: Int[Tensor, " X"]) -> None:
        """Keep the rows given by `index`."""
        self._room = self._room and self._room.rows(index)
        self._rings = self._rings and self._rings.rows(index)

    def _rings_of(self, room: Pools) -> Rings:
        """Return the rings, created on first use: a prompt needs none."""
        if self._rings is None:
            codes = room.codes[: self._rounds, :, : self._count]
            self._rings = Rings.of(codes, self._buckets, self._window)
        return self._rings

    def _without_dead(self, room: Pools) -> Pools:
        """Copy the live pools, and update the rings to their new slots."""
        rings, pools = self._rings_of(room), room.keep(self._count)
        alive = rings.alive(self._count)
        self._alive = self._count = most = int(alive.sum(1).max()) if alive.numel() else 0
        # A stable sort moves live pools to the right end; -1 pads the left.
        place = torch.sort(alive.int(), dim=1, stable=True).indices[:, alive.shape[1] - most :]
        to = torch.zeros_like(alive, dtype=torch.int64)
        self._rings = rings.moved(to.scatter_(1, place, torch.arange(most, device=to.device).expand_as(place)))
        return pools.select(place).without(~alive.gather(1, place))
