"""The C++ selective scan on tensors, for any number of channels.

The kernel takes whole vectors of channels and 16 states at a time. Vectors are padded with zeros: a channel of zeros
stays zero.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from attentions.native import library
from attentions.native.calls import (
    NAMES,
    VECTOR_BYTES,
    Buffer,
    call,
    constant,
    filled,
    useful_threads,
    whole_vectors,
)

STATES = 16


def available(device: torch.device) -> bool:
    """Whether the kernel runs for tensors on this device; the first call builds it."""
    return device.type == "cpu" and library("selective_scan") is not None


def forward(
    u: Float[Tensor, "B G M E"],
    delta: Float[Tensor, "B G M E"],
    a: Float[Tensor, "G E S"],
    b: Float[Tensor, "B G M S"],
    c: Float[Tensor, "B G R N S"],
    state: Float[Tensor, "B G E S"],
    *,
    checkpoints: bool,
) -> tuple[Float[Tensor, "B G R N E"], Float[Tensor, "B G E S"], Tensor | None]:
    """Return output, last state and, with `checkpoints`, the states from which `backward` starts its chunks."""
    inputs, wide, dtype = _inputs(u, delta, a, b, c), whole_vectors(u.shape[-1], u.dtype), u.dtype
    B, G, M, E = u.shape
    last = filled(state.transpose(-1, -2), wide, (B, G, STATES, E)).clone()
    y = u.new_empty(*c.shape[:-1], wide)
    chunks = -(-M // constant("selective_scan", "scan_chunk"))
    states = u.new_empty(B, G, chunks, STATES, wide) if checkpoints else None
    call(
        "selective_scan",
        f"scan_forward_{NAMES[dtype]}",
        **inputs,
        y=Buffer(y, (*c.shape[:-1], wide), dtype),
        last=Buffer(last, (B, G, STATES, wide), dtype),
        states=Buffer(states, (B, G, chunks, STATES, wide), dtype),
    )
    return y[..., :E], last[..., :E].transpose(-1, -2), states


def backward(
    grad: Float[Tensor, "B G R N E"],
    u: Float[Tensor, "B G M E"],
    delta: Float[Tensor, "B G M E"],
    a: Float[Tensor, "G E S"],
    b: Float[Tensor, "B G M S"],
    c: Float[Tensor, "B G R N S"],
    states: Tensor,
) -> tuple[Tensor, ...]:
    """Gradients of u, delta, a, b and c, from recomputed states."""
    inputs, wide, dtype = _inputs(u, delta, a, b, c), whole_vectors(u.shape[-1], u.dtype), u.dtype
    (B, G, M, E), shape = u.shape, (*u.shape[:3], wide)
    vectors = -(-wide * u.itemsize // VECTOR_BYTES)
    threads = -(-2 * torch.get_num_threads() // max(B * G, 1))
    parts = min(vectors, threads)  # enough for every thread, even if there are few rows
    du, ddelta = u.new_empty(shape), u.new_empty(shape)
    da = u.new_zeros(B, G, STATES, wide)
    db, dc = (x.new_empty(parts, *x.shape) for x in (b, c))
    chunks = -(-M // constant("selective_scan", "scan_chunk"))
    call(
        "selective_scan",
        f"scan_backward_{NAMES[dtype]}",
        **inputs,
        dy=Buffer(filled(grad, wide, (*c.shape[:-1], E)), (*c.shape[:-1], wide), dtype),
        states=Buffer(states, (B, G, chunks, STATES, wide), dtype),
        du=Buffer(du, shape, dtype),
        ddelta=Buffer(ddelta, shape, dtype),
        da=Buffer(da, (B, G, STATES, wide), dtype),
        db=Buffer(db, (parts, *b.shape), dtype),
        dc=Buffer(dc, (parts, *c.shape), dtype),
        parts=parts,
    )
    return (
        du[..., :E],
        ddelta[..., :E],
        da.sum(0)[..., :E].transpose(-1, -2),
        *(x[0] if parts == 1 else x.sum(0) for x in (db, dc)),
    )


def _inputs(u: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor) -> dict[str, Buffer | list[int]]:
    """Arguments that both functions of the kernel share."""
    (B, G, M, E), (R, N), dtype = u.shape, c.shape[2:4], u.dtype
    if N > M:
        raise ValueError(f"c has {N} queries: they must be the last of the {M} positions of u")
    wide = whole_vectors(E, dtype)
    threads = useful_threads(u.numel() * STATES)
    return {
        "u": Buffer(filled(u, wide, (B, G, M, E)), (B, G, M, wide), dtype),
        "delta": Buffer(filled(delta, wide, (B, G, M, E)), (B, G, M, wide), dtype),
        "a": Buffer(filled(a.transpose(-1, -2), wide, (G, STATES, E)), (G, STATES, wide), dtype),
        "b": Buffer(b.contiguous(), (B, G, M, STATES), dtype),
        "c": Buffer(c.contiguous(), (B, G, R, N, STATES), dtype),
        "sizes": [B * G, G, R, M, N, wide, threads],
    }
