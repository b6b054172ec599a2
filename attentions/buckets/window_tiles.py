"""The bucket-window kernel in plain torch: slabs of dense tiles, online softmax, recomputation in backward.

Sorted queries are cut into blocks; the sorted keys spanned by a block's windows are cut into tiles; a slab is as many
(block, tile) pairs as fit a core's cache. The spans of all blocks together hold at most N·window + block·M pairs,
however buckets are filled, and nothing of that size is stored.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from attentions.common.windows import Windows, counts

BLOCK = 64  # sorted queries per block
SLAB_BYTES = 1 << 20  # scores of one slab, about half of a core's L2 cache


@dataclass(frozen=True)
class Tile:
    """A slab of S (block, tile) pairs.

    `query` (S, block) and `key` (S, K) index rows of the flattened tensors; `pairs` (S, block, K) says which pairs
    count. No query occurs twice in a slab.
    """

    query: Tensor
    key: Tensor
    pairs: Tensor


def forward(
    q: Float[Tensor, "X Q D"],
    k: Float[Tensor, "X M D"],
    v: Float[Tensor, "X M E"],
    tables: list[Windows],
    scale: float,
    *,
    once: bool,
    onto: tuple[Float[Tensor, "X Q E"], Float[Tensor, "X Q"]] | None = None,
) -> tuple[Float[Tensor, "X Q E"], Float[Tensor, "X Q"]]:
    """Return output and log-sum-exp; zeros and minus infinity for a query without any key.

    With `onto`, merges the keys here with those that gave `onto`, in place.
    """
    wide = _wide(q.dtype)
    if onto is None:
        onto = (q.new_zeros(*q.shape[:2], v.shape[2], dtype=wide), q.new_full(q.shape[:2], -torch.inf, dtype=wide))
    out, top = onto[0].flatten(0, 1), onto[1].flatten()
    total = (top > -torch.inf).to(wide)
    rows = [x.flatten(0, 1) for x in (q, k, v)]
    for tile in _tiles(tables, q.shape[1], k.shape[1], once=once):
        at = tile.query.flatten()
        queries, keys, values = _gather(tile, rows, wide)
        scores = _scores(queries, keys, tile, scale)
        old = top[at].view(tile.query.shape)
        highest = torch.maximum(old, scores.amax(-1))
        anchor = highest.clamp(min=torch.finfo(wide).min)  # a block whose pairs are all masked stays at -inf
        weights = scores.sub_(anchor.unsqueeze(-1)).exp_()
        shrink = torch.exp(old - anchor).flatten()
        total[at] = total[at] * shrink + weights.sum(-1).flatten()
        out[at] = out[at] * shrink.unsqueeze(-1) + (weights @ values).flatten(0, 1)
        top[at] = highest.flatten()
    empty = total == 0
    out /= total.masked_fill(empty, 1.0).unsqueeze(-1)
    return out.view(*q.shape[:2], -1), (top + total.log()).view(q.shape[:2])


def backward(
    grad: Float[Tensor, "X Q E"],
    q: Float[Tensor, "X Q D"],
    k: Float[Tensor, "X M D"],
    v: Float[Tensor, "X M E"],
    out: Float[Tensor, "X Q E"],
    lse: Float[Tensor, "X Q"],
    tables: list[Windows],
    scale: float,
    *,
    once: bool,
) -> tuple[Float[Tensor, "X Q D"], Float[Tensor, "X M D"], Float[Tensor, "X M E"]]:
    """Gradients of q, k and v, from recomputed scores."""
    wide = _wide(q.dtype)
    rows = [x.flatten(0, 1) for x in (q, k, v)]
    dq, dk, dv = (torch.zeros(x.shape, dtype=wide, device=x.device) for x in rows)
    grad, inner = grad.flatten(0, 1).to(wide), (grad.to(wide) * out).sum(-1).flatten()
    lse = lse.flatten().masked_fill(lse.flatten() == -torch.inf, 0.0)  # no pairs: weights are exp(-inf - 0) = 0
    for tile in _tiles(tables, q.shape[1], k.shape[1], once=once):
        at = tile.query.flatten()
        queries, keys, values = _gather(tile, rows, wide)
        tile_grad = grad.index_select(0, at).view(*tile.query.shape, -1)
        weights = (_scores(queries, keys, tile, scale) - lse[tile.query].unsqueeze(-1)).exp_()
        flow = (tile_grad @ values.mT).sub_(inner[tile.query].unsqueeze(-1)).mul_(weights).mul_(scale)
        dq.index_add_(0, at, (flow @ keys).flatten(0, 1))
        dk.index_add_(0, tile.key.flatten(), (flow.mT @ queries).flatten(0, 1))
        dv.index_add_(0, tile.key.flatten(), (weights.mT @ tile_grad).flatten(0, 1))
    return dq.view_as(q).to(q.dtype), dk.view_as(k).to(k.dtype), dv.view_as(v).to(v.dtype)


def _gather(tile: Tile, rows: list[Tensor], wide: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Queries (S, block, D), keys (S, K, D) and values (S, K, E) of a slab."""
    places = (tile.query, tile.key, tile.key)
    found = [x.index_select(0, at.flatten()).to(wide).view(*at.shape, -1) for x, at in zip(rows, places, strict=True)]
    return found[0], found[1], found[2]


def _scores(queries: Tensor, keys: Tensor, tile: Tile, scale: float) -> Tensor:
    return ((queries * scale) @ keys.mT).masked_fill_(~tile.pairs, -torch.inf)


def _tiles(tables: list[Windows], Q: int, M: int, *, once: bool) -> Iterator[Tile]:
    whole = Q - Q % BLOCK
    for index, table in enumerate(tables):
        for part, block in ((slice(0, whole), BLOCK), (slice(whole, Q), Q - whole)):
            if part.stop > part.start:
                query = table.query_order[:, part].unflatten(1, (-1, block)).long()
                yield from _tiles_of(tables, index, query, Q, M, once=once)


def _tiles_of(tables: list[Windows], index: int, query: Tensor, Q: int, M: int, *, once: bool) -> Iterator[Tile]:
    """Yield slabs for blocks of sorted queries (X, blocks, block): first tile of every block, then second, ..."""
    block, table = query.shape[2], tables[index]
    places = table.key_order.shape[1]
    start, end = (x.gather(1, query.flatten(1)).view_as(query).long() for x in (table.start, table.end))
    low = start.masked_fill(end <= start, places).amin(-1)
    span = (end.amax(-1) - low).clamp(min=0)
    width = min(M, max(round(1.5 * span.float().mean().item()), block))
    slab = max(1, SLAB_BYTES // (block * width * 4))
    pending, offset = torch.nonzero(span > 0), 0
    while len(pending):
        for x, b in (part.unbind(1) for part in pending.split(slab)):
            rank = (low[x, b] + offset)[:, None] + torch.arange(width, device=query.device)
            inside = (rank[:, None] >= start[x, b][..., None]) & (rank[:, None] < end[x, b][..., None])
            row, rank = x[:, None], rank.clamp(max=places - 1)
            pairs = inside & counts(tables, index, x[:, None, None], query[x, b][..., None], rank[:, None], once=once)
            key = rank if table.by_rank else table.key_order[row, rank].long()
            yield Tile(query[x, b] + row * Q, key + row * M, pairs)
        offset += width
        pending = pending[span[pending[:, 0], pending[:, 1]] > offset]


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32
