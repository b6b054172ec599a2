"""Windows for the shared bucket kernel: for bands, and for buckets of pools."""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor

from attentions.common.windows import Windows, members_of
from attentions.native import bucket_window


def band_windows(start: Int[Tensor, " Q"], stop: Int[Tensor, " Q"], keys: int, heads: int, rows: int) -> Windows:
    """Consecutive keys [start, stop) for the queries of `heads` heads, one head after the other."""
    order = torch.arange(keys, device=start.device)
    queries = by_position(len(start), heads, start.device)
    order, queries, start, stop = (x.int().expand(rows, -1).contiguous() for x in (order, queries, start, stop))
    return Windows(order, queries, start, stop)


def by_position(queries: int, heads: int, device: torch.device) -> Int[Tensor, " Q"]:
    """Order of queries by position, with heads innermost."""
    return torch.arange(queries, device=device).view(heads, -1).mT.flatten()


def recent_windows(
    query_codes: Int[Tensor, "X Q"],
    key_codes: Int[Tensor, "X L"],
    limit: Int[Tensor, "X positions"],
    window: int,
    codes: int,
) -> Windows:
    """The last `window` keys with a query's code among the first `limit` of its position; codes are below `codes`.

    Queries of a group are ordered one head after the other. Keys with code -1, which come first, belong to nobody.
    """
    heads = query_codes.shape[1] // limit.shape[1]
    if bucket_window.available(query_codes.device) and codes <= 4 * key_codes.shape[1] + 4096:
        real = (key_codes < 0).sum(1)
        return bucket_window.windows(query_codes, key_codes, heads, codes, window, causal=True, real=real, limit=limit)
    return _windows(query_codes, key_codes, limit.repeat(1, heads), window, recent=True)


def coming_windows(
    query_codes: Int[Tensor, "X Q"],
    key_codes: Int[Tensor, "X L"],
    limit: Int[Tensor, "X positions"],
    window: int,
) -> Windows:
    """The first `window` keys with a query's code from index `limit` on."""
    heads = query_codes.shape[1] // limit.shape[1]
    return _windows(query_codes, key_codes, limit.repeat(1, heads), window, recent=False)


def _windows(query_codes: Tensor, key_codes: Tensor, limit: Tensor, window: int, *, recent: bool) -> Windows:
    span = key_codes.shape[1] + 1
    sorted_codes, key_order = torch.sort(key_codes, dim=1, stable=True)
    place = sorted_codes * span + key_order
    edge = query_codes * span + limit
    cut = torch.searchsorted(place, edge)
    if recent:
        start, end = torch.maximum(torch.searchsorted(place, query_codes * span), cut - window), cut
    else:
        start, end = cut, torch.minimum(torch.searchsorted(place, (query_codes + 1) * span), cut + window)
    query_order = torch.argsort(edge, dim=1, stable=True)
    members = members_of(key_order, key_codes, query_codes, torch.zeros_like(start), start, end)
    return Windows(*(x.int() for x in (key_order, query_order, start, end)), members=members)
