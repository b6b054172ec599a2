"""Pools: keys and values of a level, averaged by its factor, with their codes and indices in the sequence."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Pools:
    """Pools for each row of X; `index` counts pools from the start of the sequence, and -1 marks padding."""

    keys: Float[Tensor, "X L D"]
    values: Float[Tensor, "X L E"]
    codes: Int[Tensor, "rounds X L"]
    index: Int[Tensor, "X L"]

    @staticmethod
    def cat(*parts: Pools) -> Pools:
        """Concatenate the parts along the pool axis."""
        keys, values, index = (torch.cat([getattr(p, name) for p in parts], 1) for name in ("keys", "values", "index"))
        return Pools(keys, values, torch.cat([p.codes for p in parts], 2), index)

    def keep(self, count: int) -> Pools:
        """Keep only the first `count` pools of each row."""
        return Pools(self.keys[:, :count], self.values[:, :count], self.codes[:, :, :count], self.index[:, :count])

    def rows(self, index: Int[Tensor, " X"]) -> Pools:
        """Select rows by `index`."""
        return Pools(self.keys[index], self.values[index], self.codes[:, index], self.index[index])

    def tensors(self) -> tuple[Tensor, ...]:
        """All tensors held."""
        return self.keys, self.values, self.codes, self.index

    def detach(self) -> Pools:
        """The same without gradients."""
        return Pools(*(x.detach() for x in self.tensors()))

    def without(self, dead: Bool[Tensor, "X L"]) -> Pools:
        """The same with codes and indices of -1 for the dead pools."""
        return replace(self, codes=self.codes.masked_fill(dead, -1), index=self.index.masked_fill(dead, -1))

    def widened(self, room: int) -> Pools:
        """A copy with room for `room` pools per row."""
        more = room - self.index.shape[1]
        keys, values = (F.pad(x, (0, 0, 0, more)) for x in (self.keys, self.values))
        codes, index = (F.pad(x, (0, more)) for x in (self.codes, self.index))
        return Pools(keys, values, codes, index)

    def put(self, place: int, pool: Pools) -> None:
        """Write one pool per row at slot `place`."""
        self.keys[:, place], self.values[:, place] = pool.keys[:, 0], pool.values[:, 0]
        self.codes[:, :, place], self.index[:, place] = pool.codes[:, :, 0], pool.index[:, 0]

    def drop(self, count: int) -> Pools:
        """Drop the first `count` pools of each row."""
        return Pools(self.keys[:, count:], self.values[:, count:], self.codes[:, :, count:], self.index[:, count:])

    def with_values(self, place: Int[Tensor, "X K"], values: Float[Tensor, "X K E"]) -> Pools:
        """The pools at slots `place` of each row, with other values."""
        codes = self.codes.gather(2, place.expand(len(self.codes), -1, -1))
        return Pools(rows_at(self.keys, place), values, codes, self.index.gather(1, place))

    def select(self, place: Int[Tensor, "X K"]) -> Pools:
        """The pools at slots `place` of each row."""
        return self.with_values(place, rows_at(self.values, place))


def rows_at(x: Tensor, place: Tensor) -> Tensor:
    """x (X, L, W) at slots (X, K), by one row selection, which is much faster than gathering elements."""
    rows = torch.arange(len(x), device=x.device)[:, None] * x.shape[1]
    return x.flatten(0, 1).index_select(0, (rows + place).flatten()).view(*place.shape, x.shape[2])
