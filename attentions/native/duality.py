"""The C++ state space duality behind tensors: any number of channels and states, which zeros fill up to vectors."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from attentions.native import library
from attentions.native.calls import NAMES, call, filled, useful_threads, whole_vectors


def available(device: torch.device) -> bool:
    """Whether the kernel runs for tensors of this device; builds it when first asked."""
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
    """Output, last state and, if asked for, the states before each chunk, which `backward` starts from.

    K is G, or 1: one b and c for all, whose scores are then computed once.
    """
    inputs, sizes = _filled(x, log, b, c, chunk)
    E, S, wide, states = x.shape[-1], b.shape[-1], inputs[0].shape[-1], inputs[2].shape[-1]
    y, last = x.new_empty(*x.shape[:2], *c.shape[2:4], wide), _turned(state, wide, states).clone()
    chunks = -(-x.shape[2] // chunk)
    before = x.new_empty(*x.shape[:2], chunks, states, wide) if checkpoints else None
    call("duality", f"duality_forward_{NAMES[x.dtype]}", *inputs, sizes, y, last, before)
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
    """Gradients of x, log, b, c and the state to start from."""
    inputs, sizes = _filled(x, log, b, c, chunk)
    E, S, (wide, states, parts) = x.shape[-1], b.shape[-1], (int(sizes[i]) for i in (5, 4, 7))
    dx, dstate = torch.empty_like(inputs[0]), _turned(grad_state, wide, states).clone()
    shared = int(sizes[1]) > 1  # then the parts are of rows
    dlog, db, dc = (y.new_empty(1 if y is inputs[1] and shared else parts, *y.shape) for y in inputs[1:])
    outputs = (dx, dlog, db, dc, dstate)
    call("duality", f"duality_backward_{NAMES[x.dtype]}", *inputs, sizes, filled(grad, wide), before, *outputs)
    dlog, db, dc = (y[0] if len(y) == 1 else y.sum(0) for y in (dlog, db, dc))
    return dx[..., :E], dlog, db[..., :S], dc[..., :S], dstate[..., :S, :E].transpose(-1, -2)


def _filled(x: Tensor, log: Tensor, b: Tensor, c: Tensor, chunk: int) -> tuple[list[Tensor], Tensor]:
    B, G, T, E = x.shape
    wide, states = whole_vectors(E, x.dtype), whole_vectors(b.shape[3], x.dtype)
    threads, sharing = useful_threads(x.numel() * states), G // b.shape[1]
    divisible = sharing if sharing > 1 else wide // whole_vectors(1, x.dtype)
    parts = min(divisible, -(-threads * sharing // (B * G)))  # idle threads take a share of the rows or channels
    sizes = torch.tensor([B * G, sharing, c.shape[2], T, states, wide, chunk, parts, threads])
    return [filled(x, wide), log.contiguous(), filled(b, states), filled(c, states)], sizes


def _turned(state: Tensor, wide: int, states: int) -> Tensor:
    """A state (E, S) as the kernel keeps it, (S, E) in whole vectors."""
    return filled(filled(state, states).transpose(-1, -2), wide)
