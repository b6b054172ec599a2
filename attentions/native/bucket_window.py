"""The C++ bucket-window kernel, with the same functions as `attentions.buckets.window_tiles`."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from attentions.common.windows import Members, Windows
from attentions.native import library
from attentions.native.calls import MAX_INDEX, NAMES, Buffer, call, plain


def available(device: torch.device) -> bool:
    """Whether the kernel runs for tensors on this device; the first call builds it."""
    return device.type == "cpu" and library("bucket_window") is not None


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
    """Output and log-sum-exp in float32 or wider; zeros and minus infinity for a query without any key.

    With `onto`, merges the keys here with those that gave `onto`, in place.
    """
    inputs, (X, Q, E), dtype = _inputs(q, k, v, tables, scale, once, resume=onto is not None)
    out, lse = onto if onto else (q.new_empty(X, Q, E, dtype=dtype), q.new_empty(X, Q, dtype=dtype))
    outputs = {"out": Buffer(out, (X, Q, E), dtype), "lse": Buffer(lse, (X, Q), dtype)}
    call("bucket_window", f"window_forward_{NAMES[dtype]}", **inputs, **outputs)
    return out, lse


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
    inputs, (X, Q, E), dtype = _inputs(q, k, v, tables, scale, once)
    grads = [torch.zeros(x.shape, dtype=dtype) for x in (q, k, v)]
    call(
        "bucket_window",
        f"window_backward_{NAMES[dtype]}",
        **inputs,
        grad=Buffer(plain(grad, dtype), (X, Q, E), dtype),
        out=Buffer(out.contiguous(), (X, Q, E), dtype),
        lse=Buffer(lse.contiguous(), (X, Q), dtype),
        **{f"d{name}": Buffer(x, tuple(x.shape), dtype) for name, x in zip("qkv", grads, strict=True)},
    )
    dq, dk, dv = (x.to(own.dtype) for x, own in zip(grads, (q, k, v), strict=True))
    return dq, dk, dv


def windows(
    query_codes: Int[Tensor, "X Q"],
    key_codes: Int[Tensor, "X M"],
    heads: int,
    codes: int,
    window: int,
    *,
    causal: bool,
    real: Int[Tensor, " X"] | None = None,
    limit: Int[Tensor, "X positions"] | None = None,
    forest: tuple[int, int] = (0, 0),
) -> Windows:
    """`bucket_windows` by counting sort, for the queries of `heads` heads, the last positions of the keys.

    `limit`, which ascends, gives for each position the number of keys that are not after it, in place of its own rank
    among the keys. `forest` is the number of bits and the fewest candidates of an LSH forest's tree, or zeros.
    """
    (X, Q), M, (bits, fewest) = query_codes.shape, key_codes.shape[1], forest
    places = M * (bits + 1)
    if max(places, Q, codes) > MAX_INDEX:
        raise ValueError(
            f"{places} sorted keys, {Q} queries and {codes} codes: a row can have at most {MAX_INDEX} of each"
        )
    if heads < 1 or Q % heads or (limit is None and Q // heads > M):
        raise ValueError(
            f"{Q} queries of {heads} heads and {M} keys: queries must divide evenly among heads and not outnumber keys"
        )
    dtype = query_codes.dtype if query_codes.dtype == key_codes.dtype == torch.int32 else torch.int64
    key_order = torch.empty(X, places, dtype=torch.int32)
    key_code = torch.empty(X, M, dtype=torch.int32)
    query_code, query_order, start, end, oldest, newest = torch.empty(6, X, Q, dtype=torch.int32)
    shift = torch.zeros(X, Q, dtype=torch.int32)
    real = torch.zeros(X, dtype=torch.int64) if real is None else real.to(torch.int64).contiguous()
    limit = None if limit is None else limit.int().contiguous()
    written = {
        "query_order": query_order, "start": start, "end": end, "oldest": oldest, "newest": newest, "shift": shift,
    }  # fmt: skip
    call(
        "bucket_window",
        f"window_sort_{NAMES[dtype]}",
        query_codes=Buffer(query_codes.to(dtype).contiguous(), (X, Q), dtype),
        key_codes=Buffer(key_codes.to(dtype).contiguous(), (X, M), dtype),
        real=Buffer(real, (X,), torch.int64),
        limit=Buffer(limit, (X, Q // heads), torch.int32),
        sizes=[X, Q, M, heads, codes, window, int(causal), torch.get_num_threads(), bits, fewest],
        query_code=Buffer(query_code, (X, Q), torch.int32),
        key_code=Buffer(key_code, (X, M), torch.int32),
        key_order=Buffer(key_order, (X, places), torch.int32),
        **{name: Buffer(x, (X, Q), torch.int32) for name, x in written.items()},
    )
    return Windows(key_order, query_order, start, end, Members(key_code, query_code, shift, oldest, newest))


def count(tables: list[Windows], *, once: bool) -> Int[Tensor, "X Q"]:
    """Number of keys that enter each query's output, over all tables."""
    X, Q = tables[0].start.shape
    found = torch.empty(X, Q, dtype=torch.int64)
    M = tables[0].key_order.shape[1] if tables[0].members is None else tables[0].members.key_code.shape[1]
    index, sizes = _index(tables, X, Q, M, once), _sizes((X, Q, M, 0, 0), tables, once)
    call("bucket_window", "window_count", index=index, sizes=sizes, found=Buffer(found, (X, Q), torch.int64))
    return found


def _inputs(
    q: Tensor, k: Tensor, v: Tensor, tables: list[Windows], scale: float, once: bool, *, resume: bool = False
) -> tuple[dict[str, Any], tuple[int, int, int], torch.dtype]:
    """Arguments that both passes share, the output's rows, queries and width, and the computing dtype."""
    q = plain(q)
    (X, Q, D), M, E = q.shape, k.shape[1], v.shape[2]
    inputs = {
        "q": Buffer(q, (X, Q, D), q.dtype),
        "k": Buffer(plain(k, q.dtype), (X, M, D), q.dtype),
        "v": Buffer(plain(v, q.dtype), (X, M, E), q.dtype),
        "index": _index(tables, X, Q, M, once),
        "sizes": _sizes((X, Q, M, D, E), tables, once, resume=resume),
        "scale": float(scale),
    }
    return inputs, (X, Q, E), q.dtype


def _index(tables: list[Windows], X: int, Q: int, M: int, once: bool) -> list[Buffer]:
    """Eleven pointers per table."""
    found = []
    for table in tables:
        m, P = table.members, table.key_order.shape[1]
        if P > MAX_INDEX or (table.by_rank and P != M):
            raise ValueError(
                f"{P} sorted keys of {M}: at most {MAX_INDEX} are allowed, and by rank exactly one per key"
            )
        members = (None,) * 5 if m is None else (m.key_code, m.query_code, m.shift, m.oldest, m.newest)
        by_query = (table.query_order, table.start, table.end, table.before, table.skip)
        shapes = [(X, P), *[(X, Q)] * 5, (X, M), *[(X, Q)] * 4]
        parts = zip((table.key_order, *by_query, *members), shapes, strict=True)
        found += [Buffer(None if x is None else x.contiguous(), shape, torch.int32) for x, shape in parts]
    if once and not all(table.members for table in tables[:-1]):
        raise ValueError("a union needs the members of its windows")
    return found


def _sizes(
    shape: tuple[int, int, int, int, int], tables: list[Windows], once: bool, *, resume: bool = False
) -> list[int]:
    X, Q, M, D, E = shape
    places = [int(x) for table in tables for x in (table.key_order.shape[1], table.by_rank)]
    return [X, Q, M, D, E, len(tables), int(once), torch.get_num_threads(), int(resume), *places]
