"""Bucket windows: for each query the most recent keys of its own code, as ranges of a sorted order.

Keys are sorted by (code, position). In that order the window of a query is one contiguous range
[start, end), and both ends are monotone over queries sorted the same way. That makes the attention of a
block of sorted queries a small dense product, however buckets are filled.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor


@dataclass(frozen=True)
class Windows:
    """The windows of one table. X counts sequence and key/value head pairs; Q queries, all heads of a group.

    `key_order` sorted rank -> key; `key_rank` its inverse; `query_order` sorted rank -> query; `start`, `end`
    the range of sorted ranks that each query (in its own order) attends to.
    """

    key_order: Int[Tensor, "X M"]
    key_rank: Int[Tensor, "X M"]
    query_order: Int[Tensor, "X Q"]
    start: Int[Tensor, "X Q"]
    end: Int[Tensor, "X Q"]


def bucket_windows(
    query_codes: Int[Tensor, "X Q"],
    key_codes: Int[Tensor, "X M"],
    query_at: Int[Tensor, "X Q"],
    window: int,
    *,
    causal: bool,
    real: Int[Tensor, " X"] | None = None,
) -> Windows:
    """The `window` keys of a query's code that stand last at or before it, and as many after it if not causal.

    `query_at` are the queries' positions among the keys. Keys before `real` belong to no bucket, and queries
    before it get an empty window. Codes are zero or more.
    """
    M = key_codes.shape[1]
    keys = torch.arange(M, device=key_codes.device)
    if real is not None:  # padding sorts to the front, under a code that no query has
        key_codes = key_codes.masked_fill(keys < real[:, None], -1)
    key_order = torch.sort(key_codes, dim=1, stable=True).indices
    key_rank = torch.empty_like(key_order).scatter_(1, key_order, keys.expand_as(key_order))
    place = key_codes.gather(1, key_order) * M + key_order
    bucket = query_codes * M
    end = torch.searchsorted(place, bucket + query_at, right=True)
    start = torch.maximum(torch.searchsorted(place, bucket), end - window)
    if not causal:
        end = torch.minimum(torch.searchsorted(place, bucket + M), end + window)
    sort_key = bucket + query_at
    if real is not None:
        padded = query_at < real[:, None]
        start, end = start.masked_fill(padded, 0), end.masked_fill(padded, 0)
        sort_key = sort_key.masked_fill(padded, -1)
    query_order = torch.argsort(sort_key, dim=1, stable=True)
    return Windows(*(x.int() for x in (key_order, key_rank, query_order, start, end)))


def count_pairs(tables: list[Windows], *, once: bool, chunk: int = 1 << 22) -> Int[Tensor, "X Q"]:
    """Keys in the windows of each query, over all tables; a key that several tables find counts once if `once`."""
    total = torch.zeros_like(tables[0].start, dtype=torch.int64)
    for index, table in enumerate(tables):
        size = table.end - table.start
        if not once or index == 0:
            total += size
            continue
        width = max(int(size.max()), 1)
        step = max(1, chunk // (width * size.shape[0]))
        for begin in range(0, size.shape[1], step):
            part = slice(begin, begin + step)
            rank = table.start[:, part, None] + torch.arange(width, device=size.device, dtype=torch.int32)
            valid = rank < table.end[:, part, None]
            key = _take(table.key_order, rank.clamp(max=table.key_order.shape[1] - 1))
            total[:, part] += (valid & ~covered(tables[:index], key, part)).sum(-1)
    return total


def covered(earlier: list[Windows], key: Int[Tensor, "X P W"], queries: slice) -> Bool[Tensor, "X P W"]:
    """Whether an earlier table's window of the same query holds the key already."""
    found = torch.zeros(key.shape, dtype=torch.bool, device=key.device)
    for table in earlier:
        rank = _take(table.key_rank, key)
        found |= (rank >= table.start[:, queries, None]) & (rank < table.end[:, queries, None])
    return found


def _take(values: Int[Tensor, "X M"], index: Int[Tensor, "X P W"]) -> Int[Tensor, "X P W"]:
    return values.gather(1, index.flatten(1).long()).view(index.shape)
