"""The C++ state space duality on tensors; any number of channels and states, zero-padded to whole vectors."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from attentions.native import library
from attentions.native.calls import NAMES, Buffer, call, filled, useful_threads, whole_vectors


def available(device: torch.device) -> bool:
    """Whether the kernel runs for tensors on this device; the first call builds it."""
    return device.type == "cpu" and library("duality") is not None


def forward(
    x: Float[Tensor, "B G T E"],
    log: Float[Tensor, "B G T"],
    b: Float[Tensor, "B K T S"],
    c: Float[Tensor, "B K R T S"],
    state: Float[Tensor, "B G E S"],
    chunk: int,
    *,
    checkpoints: bool,
) -> tuple[Float[Tensor, "B G R T E"], Float[Tensor, "B G E S"], Tensor | None]:
    """Return output, last state and, with `checkpoints`, the states before each chunk, from which `backward` starts.

    K is G, or 1 if all heads share one b and c, whose scores are then computed once.
    """
    inputs, (wide, states, _, _), dtype = *_inputs(x, log, b, c, chunk), x.dtype
    (B, G, T, E), R, S, chunks = x.shape, c.shape[2], b.shape[-1], -(-x.shape[2] // chunk)
    y, last = x.new_empty(B, G, R, T, wide), _turned(state, wide, states, (B, G, E, S)).clone()
    before = x.new_empty(B, G, chunks, states, wide) if checkpoints else None
    call(
        "duality",
        f"duality_forward_{NAMES[dtype]}",
        **inputs,
        y=Buffer(y, (B, G, R, T, wide), dtype),
        last=Buffer(last, (B, G, states, wide), dtype),
        before=Buffer(before, (B, G, chunks, states, wide), dtype),
    )
    return y[..., :E], last[..., :S, :E].transpose(-1, -2), before


def backward(
    grad: Float[Tensor, "B G R T E"],
    grad_state: Float[Tensor, "B G E S"],
    x: Float[Tensor, "B G T E"],
    log: Float[Tensor, "B G T"],
    b: Float[Tensor, "B K T S"],
    c: Float[Tensor, "B K R T S"],
    before: Tensor,
    chunk: int,
) -> tuple[Tensor, ...]:
    """Gradients of x, log, b, c and the initial state."""
    inputs, (wide, states, parts, sharing), dtype = *_inputs(x, log, b, c, chunk), x.dtype
    (B, G, T, E), (K, R, S), chunks = x.shape, (*c.shape[1:3], b.shape[-1]), -(-x.shape[2] // chunk)
    dx, dstate = x.new_empty(B, G, T, wide), _turned(grad_state, wide, states, (B, G, E, S)).clone()
    dlog = x.new_empty(1 if sharing > 1 else parts, B, G, T)  # if b and c are shared, parts divide rows
    db, dc = x.new_empty(parts, B, K, T, states), x.new_empty(parts, B, K, R, T, states)
    call(
        "duality",
        f"duality_backward_{NAMES[dtype]}",
        **inputs,
        dy=Buffer(filled(grad, wide, (B, G, R, T, E)), (B, G, R, T, wide), dtype),
        before=Buffer(before, (B, G, chunks, states, wide), dtype),
        dx=Buffer(dx, (B, G, T, wide), dtype),
        dlog=Buffer(dlog, tuple(dlog.shape), dtype),
        db=Buffer(db, tuple(db.shape), dtype),
        dc=Buffer(dc, tuple(dc.shape), dtype),
        dstate=Buffer(dstate, (B, G, states, wide), dtype),
    )
    dlog, db, dc = (y[0] if len(y) == 1 else y.sum(0) for y in (dlog, db, dc))
    return dx[..., :E], dlog, db[..., :S], dc[..., :S], dstate[..., :S, :E].transpose(-1, -2)


def _inputs(
    x: Tensor, log: Tensor, b: Tensor, c: Tensor, chunk: int
) -> tuple[dict[str, Buffer | list[int]], tuple[int, int, int, int]]:
    """Arguments that both functions share, widths in whole vectors, parts, and rows sharing b and c."""
    (B, G, T, E), (K, R), S, dtype = x.shape, c.shape[1:3], b.shape[-1], x.dtype
    if chunk < 1 or K < 1 or G % K:
        raise ValueError(f"chunk={chunk} and {K} keys for {G} rows: chunk must be at least 1 and keys must divide rows")
    wide, states = whole_vectors(E, dtype), whole_vectors(S, dtype)
    threads, sharing = useful_threads(x.numel() * states), G // K
    divisible = sharing if sharing > 1 else wide // whole_vectors(1, dtype)
    parts = min(divisible, -(-threads * sharing // max(B * G, 1)))  # idle threads take some rows or channels
    inputs: dict[str, Buffer | list[int]] = {
        "x": Buffer(filled(x, wide, (B, G, T, E)), (B, G, T, wide), dtype),
        "log": Buffer(log.contiguous(), (B, G, T), dtype),
        "b": Buffer(filled(b, states, (B, K, T, S)), (B, K, T, states), dtype),
        "c": Buffer(filled(c, states, (B, K, R, T, S)), (B, K, R, T, states), dtype),
        "sizes": [B * G, sharing, R, T, states, wide, chunk, parts, threads],
    }
    return inputs, (wide, states, parts, sharing)


def _turned(state: Tensor, wide: int, states: int, shape: tuple[int, int, int, int]) -> Tensor:
    """Return a state (B, G, E, S) in the kernel's layout, (B, G, S, E) in whole vectors."""
    B, G, E, _ = shape
    return filled(filled(state, states, shape).transpose(-1, -2), wide, (B, G, states, E))
