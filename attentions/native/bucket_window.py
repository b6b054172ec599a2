"""The C++ bucket-window kernel behind the same functions as `attentions.window_tiles`."""

from __future__ import annotations

import ctypes

import torch
from jaxtyping import Float, Int
from torch import Tensor

from attentions.buckets import Members, Windows
from attentions.native import library

NAMES = {torch.float32: "float32", torch.float64: "float64"}


def available(device: torch.device) -> bool:
    """Whether the kernel runs for tensors of this device; builds it when first asked."""
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
    """Output and log-sum-exp in float32 at least; zeros and minus infinity for a query without any key.

    With `onto`, those of the keys here and of the keys that gave `onto`, written over it.
    """
    q, k, v = (_contiguous(x) for x in (q, k, v))
    out, lse = onto if onto else (q.new_empty(*q.shape[:2], v.shape[2]), q.new_empty(q.shape[:2]))
    index, sizes = _index(tables), _sizes(q.shape, k.shape, v.shape[2], tables, once, resume=onto is not None)
    _call(f"window_forward_{NAMES[q.dtype]}", q, k, v, index, sizes, scale, out, lse)
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
    """Gradients of q, k and v, from the scores computed anew."""
    dtypes = [x.dtype for x in (q, k, v)]
    q, k, v, grad = (_contiguous(x) for x in (q, k, v, grad))
    grads = [torch.zeros_like(x) for x in (q, k, v)]
    index, sizes = _index(tables), _sizes(q.shape, k.shape, v.shape[2], tables, once)
    _call(f"window_backward_{NAMES[q.dtype]}", q, k, v, index, sizes, scale, grad, out, lse, *grads)
    dq, dk, dv = (x.to(dtype) for x, dtype in zip(grads, dtypes, strict=True))
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
    """`bucket_windows` by counting sort, for the queries of `heads` heads that stand last among the keys.

    `limit` says for each position how many keys are not after it, in place of its own rank among the keys; it
    ascends. `forest` is the bits and the fewest candidates of an LSH forest's tree, or zeros.
    """
    rows, queries = query_codes.shape
    keys, (bits, fewest) = key_codes.shape[1], forest
    places = keys * (bits + 1)
    key_order, *rest = (torch.empty(rows, n, dtype=torch.int32) for n in (places, *[queries] * 5))
    shift = torch.zeros(rows, queries, dtype=torch.int32)
    threads = torch.get_num_threads()
    sizes = torch.tensor([rows, queries, keys, heads, codes, window, causal, threads, bits, fewest])
    real = torch.zeros(rows, dtype=torch.int64) if real is None else real.to(torch.int64).contiguous()
    query_codes, key_codes = (x.int().contiguous() for x in (query_codes, key_codes))
    limit = None if limit is None else limit.int().contiguous()
    _call("window_sort", query_codes, key_codes, real, limit, sizes, key_order, *rest, shift)
    query_order, start, end, oldest, newest = rest
    return Windows(key_order, query_order, start, end, Members(key_codes, query_codes, shift, oldest, newest))


def count(tables: list[Windows], *, once: bool) -> Int[Tensor, "X Q"]:
    """Keys that enter each query's output, over all tables."""
    rows, queries = tables[0].start.shape
    found = torch.empty(rows, queries, dtype=torch.int64)
    keys = tables[0].key_order.shape[1] if tables[0].members is None else tables[0].members.key_code.shape[1]
    _call("window_count", _index(tables), _sizes((rows, queries, 0), (rows, keys), 0, tables, once), found)
    return found


def _contiguous(x: Tensor) -> Tensor:
    return x.detach().to(x.dtype if x.dtype in NAMES else torch.float32).contiguous()


def _index(tables: list[Windows]) -> list[Tensor | None]:
    found: list[Tensor | None] = []
    for table in tables:
        m = table.members
        members = (None,) * 5 if m is None else (m.key_code, m.query_code, m.shift, m.oldest, m.newest)
        parts = (table.key_order, table.query_order, table.start, table.end, table.before, table.skip, *members)
        found += [None if x is None else x.contiguous() for x in parts]
    return found


def _sizes(
    q: tuple[int, ...], k: tuple[int, ...], value_dim: int, tables: list[Windows], once: bool, *, resume: bool = False
) -> Tensor:
    assert not once or all(table.members for table in tables[:-1]), "a union needs to know its windows' members"
    places = [x for table in tables for x in (table.key_order.shape[1], table.by_rank)]
    threads = torch.get_num_threads()
    return torch.tensor([q[0], q[1], k[1], q[2], value_dim, len(tables), once, threads, resume, *places])


def _call(name: str, *arguments: Tensor | list[Tensor | None] | float | None) -> None:
    """Call a function of the library; tensors go as pointers, a list of them as an array of pointers."""
    kernel = library("bucket_window")
    assert kernel is not None, "ask available() first"
    function = getattr(kernel, name)
    function.restype = None
    function(*(_pointer(x) for x in arguments))


def _pointer(x: Tensor | list[Tensor | None] | float | None) -> object:
    if x is None:
        return ctypes.c_void_p(None)
    if isinstance(x, float | int):
        return ctypes.c_double(x)
    if isinstance(x, Tensor):
        return ctypes.c_void_p(x.data_ptr())
    return (ctypes.c_void_p * len(x))(*[None if y is None else y.data_ptr() for y in x])
