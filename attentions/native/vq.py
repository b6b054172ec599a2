"""The C++ kernels of vector-quantised attention, with the functions of `transformer_vq.codes`; forward only."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from attentions.native import library
from attentions.native.calls import NAMES, Buffer, call, plain


def available(device: torch.device) -> bool:
    """Whether the kernels run for tensors on this device; the first call builds them."""
    return device.type == "cpu" and library("vq") is not None


def nearest(x: Float[Tensor, "B H N D"], codebook: Float[Tensor, "H S D"]) -> Int[Tensor, "B H N"]:
    """Return the code of each row's nearest codeword, the first one on ties."""
    x, (B, H, N, D), S = plain(x), x.shape, codebook.shape[1]
    codes = torch.empty(B, H, N, dtype=torch.int64)
    call(
        "vq",
        f"vq_nearest_{NAMES[x.dtype]}",
        x=Buffer(x, (B, H, N, D), x.dtype),
        codebook=Buffer(plain(codebook, x.dtype), (H, S, D), x.dtype),
        sizes=[B * H, H, N, D, S, torch.get_num_threads()],
        codes=Buffer(codes, (B, H, N), torch.int64),
    )
    return codes


def tally(
    v: Float[Tensor, "B G M E"],
    codes: Int[Tensor, "B G M"],
    counts: Float[Tensor, "B G S"],
    sums: Float[Tensor, "B G S E"],
) -> None:
    """Add the keys' values to the counts and sums of their codes (float64 and contiguous), in place."""
    v, (B, G, M, E), S = plain(v), v.shape, counts.shape[2]
    call(
        "vq",
        f"vq_tally_{NAMES[v.dtype]}",
        v=Buffer(v, (B, G, M, E), v.dtype),
        codes=Buffer(codes.contiguous(), (B, G, M), torch.int64),
        sizes=[B * G, M, E, S, torch.get_num_threads()],
        counts=Buffer(counts, (B, G, S), torch.float64),
        sums=Buffer(sums, (B, G, S, E), torch.float64),
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
    """Attend from queries to the codewords held in `counts` and `sums`.

    With `codes` and `v` for as many keys as queries it is causal: each query also sees these keys up to its own, and
    all of them are added to `counts` and `sums`.
    """
    q, (B, H, N, D), (G, S, _) = plain(q), q.shape, codebook.shape
    book = Buffer(plain(codebook, q.dtype), (G, S, D), q.dtype)
    return _attend(q.dtype, (B, H, N), D, 0, (Buffer(q, (B, H, N, D), q.dtype), book), codes, v, counts, sums, scale)


def attend_by_code(
    q_codes: Int[Tensor, "B H N"],
    table: Float[Tensor, "H A S"],
    codes: Int[Tensor, "B G N"] | None,
    v: Float[Tensor, "B G N E"] | None,
    counts: Float[Tensor, "B G S"],
    sums: Float[Tensor, "B G S E"],
) -> Float[Tensor, "B H N E"]:
    """`attend` for queries that are codewords; `table` holds the score of each query code with each key code."""
    table, (B, H, N), (_, A, S) = plain(table), q_codes.shape, table.shape
    given = Buffer(q_codes.contiguous(), (B, H, N), torch.int64), Buffer(table, (H, A, S), table.dtype)
    return _attend(table.dtype, (B, H, N), 0, A, given, codes, v, counts, sums, 1.0)


def look_up(table: Float[Tensor, "B H A E"], codes: Int[Tensor, "B H N"]) -> Float[Tensor, "B H N E"]:
    """Return row `codes[b, h, i]` of each head's table."""
    table, (B, H, A, E), N = plain(table), table.shape, codes.shape[2]
    out = table.new_empty(B, H, N, E)
    call(
        "vq",
        f"vq_look_up_{NAMES[table.dtype]}",
        table=Buffer(table, (B, H, A, E), table.dtype),
        codes=Buffer(codes.contiguous(), (B, H, N), torch.int64),
        sizes=[B * H, A, N, E, torch.get_num_threads()],
        out=Buffer(out, (B, H, N, E), table.dtype),
    )
    return out


def _attend(
    dtype: torch.dtype,
    queries: tuple[int, int, int],
    dim: int,
    query_codes: int,
    scored: tuple[Buffer, Buffer],
    codes: Tensor | None,
    v: Tensor | None,
    counts: Tensor,
    sums: Tensor,
    scale: float,
) -> Tensor:
    """`scored` is queries and codebook, or if `query_codes` > 0 the queries' codes and a table of that many rows."""
    (B, H, N), (_, G, S, E) = queries, sums.shape
    out, nothing = torch.empty(B, H, N, E, dtype=dtype), Buffer(None, (), dtype)
    by_code = query_codes > 0
    call(
        "vq",
        f"vq_attend_{NAMES[dtype]}",
        q=nothing if by_code else scored[0],
        q_codes=scored[0] if by_code else nothing,
        table=scored[1] if by_code else nothing,
        codebook=nothing if by_code else scored[1],
        codes=Buffer(None if codes is None else codes.contiguous(), (B, G, N), torch.int64),
        v=Buffer(None if v is None else plain(v, dtype), (B, G, N, E), dtype),
        sizes=[B * G, H // G, G, N, dim, E, S, query_codes, torch.get_num_threads(), int(codes is not None)],
        scale=float(scale),
        counts=Buffer(counts, (B, G, S), torch.float64),
        sums=Buffer(sums, (B, G, S, E), torch.float64),
        out=Buffer(out, (B, H, N, E), dtype),
    )
    return out
