"""Hash families: each maps vectors to integer codes, per table and per key/value head.

Query heads of a group share their key head's functions. Codes are computed in float32 or wider, regardless of autocast
and of the precision set for products. A family is drawn from its seed and never looks at the input, so the codes of a
prefix are a prefix of the codes. What was drawn is part of the state: a module that loads a state dict computes the
same codes as the module that saved it.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from attentions.common.settings import require
from transformer_vq.precision import Selector, exact_products

MAX_BITS = 24  # 2**24 buckets, as many as there are keys to fill them
PIECE = 8192  # vectors per head hashed at once, so that their features stay in cache
FEW = 16  # up to this many vectors per head, one sum packs the bits faster than one or two launches per bit


class Hash(Selector, ABC):
    """`tables` independent hash functions for each of `kv_heads` heads, with codes in [0, 2**bits)."""

    def __init__(self, kv_heads: int, head_dim: int, *, bits: int, tables: int, seed: int) -> None:
        super().__init__()
        require(0 <= bits <= MAX_BITS, "bits", bits, f"from 0 to {MAX_BITS}")
        require(tables >= 1, "tables", tables, "an integer of at least 1")
        self.kv_heads, self.head_dim, self.bits, self.tables, self.seed = kv_heads, head_dim, bits, tables, seed

    @abstractmethod
    def signs(self, x: Float[Tensor, "B G Q D"]) -> Bool[Tensor, "B G Q F"]:
        """Return F = tables·bits binary features of each vector."""

    def forward(self, x: Float[Tensor, "B H N D"]) -> Int[Tensor, "tables B H N"]:
        """Return the code of each vector in each table; H is kv_heads or a multiple of it."""
        x = x.detach()
        if self.bits == 0:
            return torch.zeros(self.tables, *x.shape[:3], dtype=torch.int64, device=x.device)
        return torch.cat([self._codes(piece) for piece in x.split(PIECE, dim=2)], dim=-1)

    def _codes(self, x: Float[Tensor, "B H T D"]) -> Int[Tensor, "tables B H T"]:
        grouped = x.unflatten(1, (self.kv_heads, -1)).flatten(2, 3)
        signs = self.signs(grouped).unflatten(-1, (self.tables, self.bits))
        if x.shape[2] <= FEW:
            codes = (signs.long() << torch.arange(self.bits, device=x.device)).sum(-1)
        else:
            codes = signs[..., 0].long()
            for place in range(1, self.bits):
                codes |= signs[..., place].long() << place
        return codes.unflatten(2, (-1, x.shape[2])).flatten(1, 2).movedim(-1, 0)

    def _generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed)


class BitSamplingHash(Hash):
    """`bits` of the D sign bits, drawn without replacement for each table (Indyk and Motwani 1998).

    Values are compared with `thresholds` (kv_heads, head_dim), which are zero unless balanced.
    """

    added: ClassVar[tuple[str, ...]] = ("drawn",)
    drawn: Tensor
    thresholds: Tensor

    def __init__(self, kv_heads: int, head_dim: int, **settings: Any) -> None:
        super().__init__(kv_heads, head_dim, **settings)
        require(self.bits <= head_dim, "bits", self.bits, f"at most head_dim={head_dim}")
        keys = torch.rand(kv_heads, self.tables, head_dim, generator=self._generator(), dtype=torch.float32)
        self.register_buffer("drawn", keys.argsort(dim=-1)[..., : self.bits].flatten(1))
        self.register_buffer("thresholds", torch.zeros(kv_heads, head_dim, dtype=torch.float32))

    def balance(self, x: Float[Tensor, "B G M D"]) -> None:
        """Set the thresholds to the medians of a calibration sample, so that buckets fill evenly."""
        self.thresholds = x.detach().float().transpose(0, 1).flatten(1, 2).median(dim=1).values

    def signs(self, x: Float[Tensor, "B G Q D"]) -> Bool[Tensor, "B G Q F"]:
        index = self.drawn[None, :, None].expand(*x.shape[:3], -1)
        above = x > self.thresholds[None, :, None]  # compared in the wider dtype, so no threshold is rounded
        return above.gather(-1, index)


class SimHash(Hash):
    """Signs of Gaussian projections (Charikar 2002): two vectors at angle θ share a bit with probability 1 - θ/π.

    Projections are compared with `thresholds` (kv_heads, tables·bits), which are zero unless balanced.
    """

    added: ClassVar[tuple[str, ...]] = ("planes",)
    planes: Tensor
    thresholds: Tensor

    def __init__(self, kv_heads: int, head_dim: int, **settings: Any) -> None:
        super().__init__(kv_heads, head_dim, **settings)
        shape = (kv_heads, head_dim, self.tables * self.bits)
        self.register_buffer("planes", torch.randn(shape, generator=self._generator(), dtype=torch.float32))
        self.register_buffer("thresholds", torch.zeros(kv_heads, self.tables * self.bits, dtype=torch.float32))

    def balance(self, x: Float[Tensor, "B G M D"]) -> None:
        """Set the thresholds to the medians of a calibration sample, so that buckets fill evenly."""
        with exact_products(x.device):
            projected = x.detach().float() @ self.planes.float()
        self.thresholds = projected.transpose(0, 1).flatten(1, 2).median(dim=1).values

    def signs(self, x: Float[Tensor, "B G Q D"]) -> Bool[Tensor, "B G Q F"]:
        wide = x if x.dtype == torch.float64 else x.float()
        with exact_products(x.device):
            return wide @ self.planes.to(wide.dtype) > self.thresholds.to(wide.dtype)[:, None]


class PositionHash(Hash):
    """Random support: codes that depend only on seed, head, table, side (query or key) and position.

    The codes are SplitMix64's finaliser (Steele, Lea and Flood 2014) of those numbers, so a prefix of a sequence has a
    prefix of its codes, whatever the length.
    """

    added: ClassVar[tuple[str, ...]] = ("_extra_state",)

    def get_extra_state(self) -> Int[Tensor, ""]:
        """Return the seed, which determines every code."""
        return torch.tensor(self.seed)

    def set_extra_state(self, state: Int[Tensor, ""]) -> None:
        """Use another module's seed."""
        self.seed = int(state)

    def signs(self, x: Float[Tensor, "B G Q D"]) -> Bool[Tensor, "B G Q F"]:
        raise NotImplementedError("codes come from positions, not from vectors")

    def at(self, positions: Int[Tensor, "B N"], heads: int, *, query: bool) -> Int[Tensor, "tables B H N"]:
        """Return the codes of `heads` heads at these positions, on the query or the key side."""
        device = positions.device
        table = torch.arange(self.tables, device=device)[:, None, None, None]
        head = torch.arange(heads, device=device)[None, None, :, None]
        stream = ((self.seed * 2 + int(query)) * self.tables + table) * heads + head
        mixed = splitmix(splitmix(stream) ^ positions[None, :, None, :])
        return mixed & (2**self.bits - 1)


def splitmix(x: Int[Tensor, "*shape"]) -> Int[Tensor, "*shape"]:
    """SplitMix64's output for a counter: 64 well-mixed bits as int64, with wrap-around."""
    x = x * -7046029254386353131 - 7046029254386353131
    x = (x ^ _shift(x, 30)) * -4658895280553007687
    x = (x ^ _shift(x, 27)) * -7723592293110705685
    return x ^ _shift(x, 31)


def _shift(x: Int[Tensor, "*shape"], by: int) -> Int[Tensor, "*shape"]:
    """Logical right shift; int64's built-in shift is arithmetic."""
    return (x >> by) & ((1 << (64 - by)) - 1)


def bits_for(max_len: int, bucket: int) -> int:
    """Number of bits with which `max_len` keys give about `bucket` keys per code."""
    return max(0, round(math.log2(max_len / bucket)))


def resolve_bits(bits: int | None, max_len: int | None, bucket: int) -> int:
    """Return `bits` if given, else the number that gives about `bucket` keys per code at `max_len` keys.

    Raises ValueError if neither bits nor max_len is given. The input length cannot decide, because later tokens would
    then change earlier codes.
    """
    if bits is not None:
        return bits
    if max_len is None:
        raise ValueError("bits=None is not allowed without max_len: bits are derived from it, never from the input")
    return bits_for(max_len, bucket)
