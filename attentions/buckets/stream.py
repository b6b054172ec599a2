"""Decoding with bucket windows: ring buffers of the last `window` keys per code and table, and of the last `local`.

A later query can attend only to what is in these rings, so the state stays bounded however long the sequence grows:
tables·codes·window + local slots per key/value head.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from attentions.buckets.window_attention import sorted_windows, window_attention
from attentions.common.stream import Stream

if TYPE_CHECKING:
    from attentions.buckets.attention import BucketAttention


class BucketStream(Stream):
    """The decoding state of a causal `BucketAttention`."""

    def __init__(self, attention: BucketAttention, batch: int) -> None:
        super().__init__(attention, batch)
        self._attention, self._rings = attention, attention.rings
        self._rows = batch * attention.kv_heads
        self._length = 0
        self._keys: Tensor | None = None  # (X, slots, D), allocated once dtype and device are known

    def advance(
        self, q: Float[Tensor, "B H T D"], k: Float[Tensor, "B G T D"], v: Float[Tensor, "B G T E"]
    ) -> Float[Tensor, "B H T E"]:
        B, T = q.shape[0], q.shape[2]
        if self._keys is None:
            self._allocate(k, v)
        at = torch.arange(self._length, self._length + T, device=q.device)
        whole = (q, k, v)
        of_q, of_k = (self._codes(x, at.expand(B, -1), query=x is q) for x in (q, k))
        flat = q.unflatten(1, (self._attention.kv_heads, -1)).flatten(2, 3).flatten(0, 1)
        k, v = k.flatten(0, 1), v.flatten(0, 1)
        if T == 1:  # gathers a few rings; the sorted kernel would read the whole state
            self._store(of_k, k, v, at)
            out = self._one(flat, of_q)
        elif self._length:
            out = self._many(flat, of_q, of_k, k, v)
            self._store(of_k, k, v, at)
        else:
            self._store(of_k, k, v, at)
            self._length = T
            return self._attention(*whole)
        self._length += T
        return out.unflatten(1, (-1, T)).unflatten(0, (B, -1)).flatten(1, 2)

    def select(self, index: Int[Tensor, " B"]) -> None:
        G = self._attention.kv_heads
        self._rows = len(index) * G
        if self._keys is not None:
            rows = (index[:, None] * G + torch.arange(G, device=index.device)).flatten()
            self._keys, self._values, self._at = (x[rows] for x in (self._keys, self._values, self._at))
            self._counts = [count[rows] for count in self._counts]

    @property
    def state_bytes(self) -> int:
        if self._keys is None:
            return 0
        held = (self._keys, self._values, self._at, *self._counts)
        return sum(x.numel() * x.itemsize for x in held)

    def _allocate(self, k: Tensor, v: Tensor) -> None:
        slots = sum(codes * size for codes, size in self._rings)
        self._keys, self._values = (x.new_zeros(self._rows, slots, x.shape[-1]) for x in (k, v))
        self._at = torch.full((self._rows, slots), -1, dtype=torch.int32, device=k.device)
        self._counts = [torch.zeros(self._rows, n, dtype=torch.int32, device=k.device) for n, _ in self._rings]

    def _codes(self, x: Tensor, at: Tensor, *, query: bool) -> Tensor:
        """Return codes (1 + tables, X, Q); the local ring comes first and has one code."""
        codes = self._attention.codes(x, at, query=query).unflatten(2, (self._attention.kv_heads, -1))
        codes = codes.flatten(3, 4).flatten(1, 2)
        return torch.cat((torch.zeros_like(codes[:1]), codes))

    def _store(self, codes: Tensor, k: Tensor, v: Tensor, at: Tensor) -> None:
        """Overwrite the oldest tokens of each ring with the new ones; if there are more than fit, only the last."""
        assert self._keys is not None
        begin = 0
        for (n, size), of_k, count in zip(self._rings, codes, self._counts, strict=True):
            added = torch.zeros_like(count).scatter_add_(1, of_k, torch.ones_like(of_k, dtype=torch.int32))
            order = torch.sort(of_k, dim=1, stable=True).indices
            code = of_k.gather(1, order)
            run_start = added.cumsum(1) - added
            nth = torch.arange(of_k.shape[1], device=of_k.device) - run_start.gather(1, code)
            row, column = torch.nonzero(added.gather(1, code) - nth <= size, as_tuple=True)
            code, nth, token = code[row, column], nth[row, column], order[row, column]
            slot = begin + code * size + (count[row, code] + nth) % size
            self._keys[row, slot], self._values[row, slot] = k[row, token].detach(), v[row, token].detach()
            self._at[row, slot] = at[token].int()
            count += added
            begin += n * size

    def _one(self, q: Tensor, codes: Tensor) -> Tensor:
        """One token: gather each query's rings, drop duplicates between them, and apply softmax attention."""
        assert self._keys is not None
        slots, begin = [], 0
        for (n, size), of_q in zip(self._rings, codes, strict=True):
            slots.append(begin + of_q.unsqueeze(-1) * size + torch.arange(size, device=q.device))
            begin += n * size
        slot = torch.cat(slots, dim=-1)  # (X, heads of a group, slots)
        row = torch.arange(len(q), device=q.device)[:, None, None]
        at, order = torch.sort(self._at[row, slot], dim=-1)
        slot = slot.gather(-1, order)
        drop = at < 0
        if self._attention.once:
            drop[..., 1:] |= at[..., 1:] == at[..., :-1]
        wide = q if q.dtype == torch.float64 else q.float()
        scores = (self._keys[row, slot].to(wide.dtype) @ wide.unsqueeze(-1)).squeeze(-1) * self._attention.scale
        weights = torch.softmax(scores.masked_fill(drop, -torch.inf), dim=-1)
        return (weights.unsqueeze(-2) @ self._values[row, slot].to(wide.dtype)).squeeze(-2).to(q.dtype)

    def _many(self, q: Tensor, of_q: Tensor, of_k: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Several tokens: concatenate what the rings hold, each token once and in order, with the new keys.

        A token that left one table's ring but is still in another's does no harm: it is older than everything in that
        ring.
        """
        assert self._keys is not None
        at, order = torch.sort(self._at, dim=1)
        keep = at >= 0
        keep[:, 1:] &= at[:, 1:] != at[:, :-1]
        most = int(keep.sum(1).max())
        # Stable sort that moves kept tokens to the right end; `real` then skips the rest as padding.
        place = torch.sort(keep.int(), dim=1, stable=True).indices[:, keep.shape[1] - most :]
        slot = order.gather(1, place)
        row = torch.arange(len(q), device=q.device)[:, None]
        old_k, old_at = self._keys[row, slot], self._at[row, slot].clamp(min=0).long()
        G, T = self._attention.kv_heads, k.shape[1]
        grouped = old_at.view(len(q) // G, G, most)
        codes = [  # positions, which some codes depend on, differ between heads
            self._attention.codes(old_k.unflatten(0, (-1, G)), grouped[:, g], query=False)[:, :, g] for g in range(G)
        ]
        old = torch.stack(codes, dim=2).flatten(1, 2)
        keys, values = torch.cat((old_k, k), dim=1), torch.cat((self._values[row, slot], v), dim=1)
        real = most - keep.sum(1)
        heads = q.shape[1] // T
        tables = []
        for index, (n, size) in enumerate(self._rings):
            past = torch.zeros_like(old_at) if index == 0 else old[index - 1]
            both = torch.cat((past, of_k[index]), dim=1)
            tables.append(sorted_windows(of_q[index], both, heads, n, size, causal=True, real=real))
        return window_attention(q, keys, values, tables, self._attention.scale, once=self._attention.once)[0]
