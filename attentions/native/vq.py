"""The C++ kernels of vector-quantised attention behind the same functions as `transformer_vq.codes`, forward only."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from attentions.native import library
from attentions.native.calls import NAMES, Memory, call, plain


def available(device: torch.device) -> bool:
    """Whether the kernels run for tensors of this device; builds them when first asked."""
    return device.type == "cpu" and library("vq") is not None


def nearest(x: Float[Tensor, "B H N D"], codebook: Float[Tensor, "H S D"]) -> Int[Tensor, "B H N"]:
    """The code of each row's nearest codeword, the first of several."""
    x, (B, H, N, D), S = plain(x), x.shape, codebook.shape[1]
    codes = torch.empty(B, H, N, dtype=torch.int64)
    call(
        "vq",
        f"vq_nearest_{NAMES[x.dtype]}",
        x=Memory(x, (B, H, N, D), x.dtype),
        codebook=Memory(plain(codebook, x.dtype), (H, S, D), x.dtype),
        sizes=[B * H, H, N, D, S, torch.get_num_threads()],
        codes=Memory(codes, (B, H, N), torch.int64),
    )
    return codes


def tally(
    v: Float[Tensor, "B G M E"],
    codes: Int[Tensor, "B G M"],
    counts: Float[Tensor, "B G S"],
    sums: Float[Tensor, "B G S E"],
) -> None:
    """Add keys' values to the counts and sums of their codes, float64 and contiguous, in place."""
    v, (B, G, M, E), S = plain(v), v.shape, counts.shape[2]
    call(
        "vq",
        f"vq_tally_{NAMES[v.dtype]}",
        v=Memory(v, (B, G, M, E), v.dtype),
        codes=Memory(codes.contiguous(), (B, G, M), torch.int64),
        sizes=[B * G, M, E, S, torch.get_num_threads()],
        counts=Memory(counts, (B, G, S), torch.float64),
        sums=Memory(sums, (B, G, S, E), torch.float64),
    )


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
    q, (B, H, N, D), (G, S, _) = plain(q), q.shape, codebook.shape
    book = Memory(plain(codebook, q.dtype), (G, S, D), q.dtype)
    return _attend(q.dtype, (B, H, N), D, 0, (Memory(q, (B, H, N, D), q.dtype), book), codes, v, counts, sums, scale)


def attend_by_code(
    q_codes: Int[Tensor, "B H N"],
    table: Float[Tensor, "H A S"],
    codes: Int[Tensor, "B G N"] | None,
    v: Float[Tensor, "B G N E"] | None,
    counts: Float[Tensor, "B G S"],
    sums: Float[Tensor, "B G S E"],
) -> Float[Tensor, "B H N E"]:
    """The same for queries that are codewords: `table` has the score of each of their codes with each key code."""
    table, (B, H, N), (_, A, S) = plain(table), q_codes.shape, table.shape
    given = Memory(q_codes.contiguous(), (B, H, N), torch.int64), Memory(table, (H, A, S), table.dtype)
    return _attend(table.dtype, (B, H, N), 0, A, given, codes, v, counts, sums, 1.0)


def look_up(table: Float[Tensor, "B H A E"], codes: Int[Tensor, "B H N"]) -> Float[Tensor, "B H N E"]:
    """Row `codes[b, h, i]` of each head's table."""
    table, (B, H, A, E), N = plain(table), table.shape, codes.shape[2]
    out = table.new_empty(B, H, N, E)
    call(
        "vq",
        f"vq_look_up_{NAMES[table.dtype]}",
        table=Memory(table, (B, H, A, E), table.dtype),
        codes=Memory(codes.contiguous(), (B, H, N), torch.int64),
        sizes=[B * H, A, N, E, torch.get_num_threads()],
        out=Memory(out, (B, H, N, E), table.dtype),
    )
    return out


def _attend(
    dtype: torch.dtype,
    queries: tuple[int, int, int],
    dim: int,
    query_codes: int,
    scored: tuple[Memory, Memory],
    codes: Tensor | None,
    v: Tensor | None,
    counts: Tensor,
    sums: Tensor,
    scale: float,
) -> Tensor:
    """`scored` is queries and codebook, or the queries' codes and their table where there are `query_codes` of them."""
    (B, H, N), (_, G, S, E) = queries, sums.shape
    out, nothing = torch.empty(B, H, N, E, dtype=dtype), Memory(None, (), dtype)
    by_code = query_codes > 0
    call(
        "vq",
        f"vq_attend_{NAMES[dtype]}",
        q=nothing if by_code else scored[0],
        q_codes=scored[0] if by_code else nothing,
        table=scored[1] if by_code else nothing,
        codebook=nothing if by_code else scored[1],
        codes=Memory(None if codes is None else codes.contiguous(), (B, G, N), torch.int64),
        v=Memory(None if v is None else plain(v, dtype), (B, G, N, E), dtype),
        sizes=[B * G, H // G, G, N, dim, E, S, query_codes, torch.get_num_threads(), int(codes is not None)],
        scale=float(scale),
        counts=Memory(counts, (B, G, S), torch.float64),
        sums=Memory(sums, (B, G, S, E), torch.float64),
        out=Memory(out, (B, H, N, E), dtype),
    )
    return out
