"""The C++ kernels of vector-quantised attention behind the same functions as `transformer_vq.codes`, forward only."""

from __future__ import annotations

import ctypes

import torch
from jaxtyping import Float, Int
from torch import Tensor

from attentions.native import library

NAMES = {torch.float32: "float32", torch.float64: "float64"}


def available(device: torch.device) -> bool:
    """Whether the kernels run for tensors of this device; builds them when first asked."""
    return device.type == "cpu" and library("vq") is not None


def nearest(x: Float[Tensor, "B H N D"], codebook: Float[Tensor, "H S D"]) -> Int[Tensor, "B H N"]:
    """The code of each row's nearest codeword, the first of several."""
    x = _plain(x)
    codes = torch.empty(x.shape[:3], dtype=torch.int64)
    B, H, N, D = x.shape
    _call("nearest", x.dtype, x, _plain(codebook, x.dtype), [B * H, H, N, D, codebook.shape[1]], codes)
    return codes


def tally(
    v: Float[Tensor, "B G M E"],
    codes: Int[Tensor, "B G M"],
    counts: Float[Tensor, "B G S"],
    sums: Float[Tensor, "B G S E"],
) -> None:
    """Add keys' values to the counts and sums of their codes, float64 and contiguous, in place."""
    v, (B, G, M, E) = _plain(v), v.shape
    _call("tally", v.dtype, v, codes.contiguous(), [B * G, M, E, counts.shape[2]], counts, sums)


def attend(
    q: Float[Tensor, "B H N D"],
    codebook: Float[Tensor, "G S D"],
    codes: Int[Tensor, "B G N"] | None,
    v: Float[Tensor, "B G N E"] | None,
    counts: Float[Tensor, "B G S"],
    sums: Float[Tensor, "B G S E"],
    scale: float,
) -> Float[Tensor, "B H N E"]:
    """Attention of queries to the codewords that `counts` and `sums` hold.

    With `codes` and `v` of as many keys as queries it is causal: each query also sees these keys up to its own, and
    `counts` and `sums` end with all of them.
    """
    q, (B, H, N, D) = _plain(q), q.shape
    (G, S, _), E = codebook.shape, sums.shape[3]
    out = q.new_empty(B, H, N, E)
    sizes = [B * G, H // G, G, N, D, E, S, 0]
    book = _plain(codebook, q.dtype)
    causal = None if codes is None else codes.contiguous(), None if v is None else _plain(v, q.dtype)
    _call("attend", q.dtype, q, None, None, book, *causal, sizes, scale, counts, sums, out)
    return out


def attend_by_code(
    q_codes: Int[Tensor, "B H N"],
    table: Float[Tensor, "H A S"],
    codes: Int[Tensor, "B G N"] | None,
    v: Float[Tensor, "B G N E"] | None,
    counts: Float[Tensor, "B G S"],
    sums: Float[Tensor, "B G S E"],
) -> Float[Tensor, "B H N E"]:
    """The same for queries that are codewords: `table` has the score of each of their codes with each key code."""
    (B, H, N), (_, A, S) = q_codes.shape, table.shape
    G, E = counts.shape[1], sums.shape[3]
    table = _plain(table)
    out = table.new_empty(B, H, N, E)
    sizes = [B * G, H // G, G, N, 0, E, S, A]
    causal = None if codes is None else codes.contiguous(), None if v is None else _plain(v, table.dtype)
    _call("attend", table.dtype, None, q_codes.contiguous(), table, None, *causal, sizes, 1.0, counts, sums, out)
    return out


def look_up(table: Float[Tensor, "B H A E"], codes: Int[Tensor, "B H N"]) -> Float[Tensor, "B H N E"]:
    """Row `codes[b, h, i]` of each head's table."""
    table, (B, H, A, E) = _plain(table), table.shape
    out = table.new_empty(*codes.shape, E)
    _call("look_up", table.dtype, table, codes.contiguous(), [B * H, A, codes.shape[2], E], out)
    return out


def _plain(x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Contiguous, in a precision that the kernels have."""
    dtype = dtype or (x.dtype if x.dtype in NAMES else torch.float32)
    return x.detach().to(dtype).contiguous()


def _call(name: str, dtype: torch.dtype, *arguments: Tensor | list[int] | float | None) -> None:
    """Call a function of the library. A list becomes an array of int64, with the number of threads behind it."""
    kernel = library("vq")
    assert kernel is not None, "ask available() first"
    function = getattr(kernel, f"vq_{name}_{NAMES[dtype]}")
    function.restype = None
    causal = name == "attend" and arguments[4] is not None
    tail = [torch.get_num_threads(), *([causal] if name == "attend" else [])]
    kept = [torch.tensor([*x, *tail]) if isinstance(x, list) else x for x in arguments]  # alive during the call
    function(*(_pointer(x) for x in kept))


def _pointer(x: Tensor | float | None) -> object:
    if isinstance(x, float | int):
        return ctypes.c_double(x)
    return ctypes.c_void_p(None if x is None else x.data_ptr())
