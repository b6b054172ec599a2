"""Bucket windows: the most recent keys with a query's own code, as ranges of a sorted order.

Keys are sorted by (code, position). In that order the window of a query is one contiguous range [start, end), and both
ends are monotone over queries sorted the same way. The attention of a block of sorted queries is therefore a small
dense product, however buckets are filled.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor


@dataclass(frozen=True)
class Members:
    """Tells whether a key is in a query's window without using its rank, so that a union counts it once.

    A key is in the window if the two codes agree above `shift` bits and the key's position is from `oldest` to
    `newest`.
    """

    key_code: Int[Tensor, "X M"]
    query_code: Int[Tensor, "X Q"]
    shift: Int[Tensor, "X Q"]
    oldest: Int[Tensor, "X Q"]
    newest: Int[Tensor, "X Q"]


@dataclass(frozen=True)
class Windows:
    """The windows of one table. X counts sequence and key/value head pairs; Q queries, all heads of a group.

    `key_order` gives the key at each sorted rank; P is M, or a multiple if keys are sorted in several ways.
    `query_order` gives the query at each sorted rank; `start` and `end` are the key ranks that each query (in its own
    order) attends to. Keys at or after `before` and the key `skip`, if given, are left out of the window. With
    `by_rank` the vectors and codes of keys are already stored in rank order, and `key_order` gives only their
    positions.
    """

    key_order: Int[Tensor, "X P"]
    query_order: Int[Tensor, "X Q"]
    start: Int[Tensor, "X Q"]
    end: Int[Tensor, "X Q"]
    members: Members | None = None
    before: Int[Tensor, "X Q"] | None = None
    skip: Int[Tensor, "X Q"] | None = None
    by_rank: bool = False


def bucket_windows(
    query_codes: Int[Tensor, "X Q"],
    key_codes: Int[Tensor, "X M"],
    query_at: Int[Tensor, "X Q"],
    window: int,
    *,
    causal: bool,
    real: Int[Tensor, " X"] | None = None,
) -> Windows:
    """The last `window` keys with a query's code up to its position and, if not causal, the first `window` after it.

    `query_at` are the queries' positions among the keys. Keys before `real` belong to no bucket, and queries before it
    get an empty window. Codes are zero or more.
    """
    M = key_codes.shape[1]
    keys = torch.arange(M, device=key_codes.device)
    if real is not None:  # padding sorts to the front, under a code no query has
        key_codes = key_codes.masked_fill(keys < real[:, None], -1)
    key_order = torch.sort(key_codes, dim=1, stable=True).indices
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
    members = members_of(key_order, key_codes, query_codes, torch.zeros_like(start), start, end)
    return Windows(*(x.int() for x in (key_order, query_order, start, end)), members=members)


def forest_windows(
    query_codes: Int[Tensor, "X Q"],
    key_codes: Int[Tensor, "X M"],
    heads: int,
    codes: int,
    window: int,
    *,
    causal: bool,
    real: Int[Tensor, " X"] | None,
    forest: tuple[int, int],
) -> Windows:
    """The windows of one tree of an LSH forest, each at the deepest level whose bucket holds enough keys.

    `forest` is the number of bits, and the minimum number of keys (at or before a causal query) that a bucket below the
    root must hold. `key_order` concatenates the keys sorted by the first 0, 1, ... bits.
    """
    (bits, fewest), M = forest, key_codes.shape[1]
    each = query_codes.shape[1] // heads
    at = torch.arange(M - each, M, device=query_codes.device).repeat(heads).expand_as(query_codes)
    order, start, end, shift = [], torch.zeros_like(at), torch.zeros_like(at), torch.full_like(at, bits)
    for depth in range(bits + 1):
        of_q, of_k = query_codes >> (bits - depth), key_codes >> (bits - depth)
        bucket = bucket_windows(of_q, of_k, at, M, causal=causal, real=real)  # window of all M keys
        enough = (bucket.end - bucket.start >= fewest) if depth else torch.ones_like(at, dtype=torch.bool)
        chosen = bucket_windows(of_q, of_k, at, window, causal=causal, real=real)
        order.append(bucket.key_order)
        start = torch.where(enough, chosen.start + depth * M, start)
        end = torch.where(enough, chosen.end + depth * M, end)
        shift = shift.masked_fill(enough, bits - depth)
    key_order = torch.cat(order, dim=1)
    by_position = torch.argsort(at, dim=1, stable=True)
    query_order = by_position.gather(1, torch.argsort(end.gather(1, by_position), dim=1, stable=True))
    members = members_of(key_order, key_codes, query_codes, shift, start, end)
    return Windows(*(x.int() for x in (key_order, query_order, start, end)), members=members)


def members_of(
    key_order: Int[Tensor, "X P"],
    key_codes: Int[Tensor, "X M"],
    query_codes: Int[Tensor, "X Q"],
    shift: Int[Tensor, "X Q"],
    start: Int[Tensor, "X Q"],
    end: Int[Tensor, "X Q"],
) -> Members:
    """The oldest and newest key of each window; for an empty window, no key is between them."""
    last = key_order.shape[1] - 1
    oldest, newest = (key_order.gather(1, rank.long().clamp(0, last)) for rank in (start, end - 1))
    oldest = oldest.masked_fill(end <= start, key_codes.shape[1])
    return Members(*(x.int() for x in (key_codes, query_codes, shift, oldest, newest)))


def count_pairs(tables: list[Windows], *, once: bool, chunk: int = 1 << 22) -> Int[Tensor, "X Q"]:
    """Count the keys in each query's windows over all tables; with `once`, a key in several tables counts once."""
    total = torch.zeros_like(tables[0].start, dtype=torch.int64)
    rows = torch.arange(len(total), device=total.device)[:, None, None]
    for index, table in enumerate(tables):
        width = max(int((table.end - table.start).max()), 1)
        step = max(1, chunk // (width * len(total)))
        for part in torch.arange(total.shape[1], device=total.device).split(step):
            rank = table.start[:, part, None] + torch.arange(width, device=total.device)
            inside = rank < table.end[:, part, None]
            rank = rank.clamp(max=table.key_order.shape[1] - 1)
            query = part[None, :, None]
            total[:, part] += (inside & counts(tables, index, rows, query, rank, once=once)).sum(-1)
    return total


def counts(
    tables: list[Windows], index: int, row: Int[Tensor, ...], query: Tensor, rank: Tensor, *, once: bool
) -> Bool[Tensor, ...]:
    """Whether keys at these ranks count in this table: not left out and, if `once`, not in an earlier table's window.

    `row`, `query` and `rank` broadcast together; the pairs are assumed to lie in the table's [start, end).
    """
    table = tables[index]
    key = table.key_order[row, rank]
    at = rank if table.by_rank else key
    keep = torch.ones_like(key, dtype=torch.bool)
    if table.before is not None:
        keep = keep & (key < table.before[row, query])
    if table.skip is not None:
        keep = keep & (key != table.skip[row, query])
    for other in tables[:index] if once else []:
        m = other.members
        assert m is not None, "a union needs the members of its windows"
        differ = (m.key_code[row, at] ^ m.query_code[row, query]) >> m.shift[row, query]
        within = (m.oldest[row, query] <= key) & (key <= m.newest[row, query])
        keep = keep & ~((differ == 0) & within)
    return keep
