"""The C++ selective scan behind tensors: any number of channels.

The kernel wants whole vectors of channels and 16 states at a time. Zeros fill the vectors up: a channel of zeros
stays zero.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from attentions.native import library
from attentions.native.calls import NAMES, VECTOR_BYTES, call, filled, useful_threads, whole_vectors

STATES = 16


def available(device: torch.device) -> bool:
    """Whether the kernel runs for tensors of this device; builds it when first asked."""
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
    """Output, last state and, if asked for, the states that `backward` starts its chunks from."""
    assert a.shape[2] == STATES, "bring the states into groups of 16 first"
    inputs, sizes = _filled(u, delta, a, b, c)
    wide = inputs[0].shape[-1]
    last = filled(state.transpose(-1, -2), wide).clone()
    y = u.new_empty(*c.shape[:-1], wide)
    chunks = -(-u.shape[2] // call("selective_scan", "scan_chunk"))
    states = u.new_empty(u.shape[0], u.shape[1], chunks, STATES, wide) if checkpoints else None
    call("selective_scan", f"scan_forward_{NAMES[u.dtype]}", *inputs, sizes, y, last, states)
    E = u.shape[-1]
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
    """Gradients of u, delta, a, b and c, from the states computed anew."""
    inputs, sizes = _filled(u, delta, a, b, c)
    E, wide, rows = u.shape[-1], inputs[0].shape[-1], u.shape[0] * u.shape[1]
    vectors = -(-wide * u.itemsize // VECTOR_BYTES)
    parts = min(vectors, -(-2 * torch.get_num_threads() // rows))  # enough for every thread, however few the rows
    du, ddelta = (torch.empty_like(inputs[0]) for _ in range(2))
    da = u.new_zeros(*u.shape[:2], STATES, wide)
    db, dc = (x.new_empty(parts, *x.shape) for x in inputs[3:])
    outputs = (du, ddelta, da, db, dc)
    call(
        "selective_scan", f"scan_backward_{NAMES[u.dtype]}", *inputs, sizes, filled(grad, wide), states, *outputs, parts
    )
    return (
        du[..., :E],
        ddelta[..., :E],
        da.sum(0)[..., :E].transpose(-1, -2),
        *(x[0] if parts == 1 else x.sum(0) for x in (db, dc)),
    )


def _filled(u: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor) -> tuple[list[Tensor], Tensor]:
    B, G, M, E = u.shape
    wide = whole_vectors(E, u.dtype)
    inputs = [*(filled(x, wide) for x in (u, delta, a.transpose(-1, -2))), b.contiguous(), c.contiguous()]
    sizes = torch.tensor([B * G, G, c.shape[2], M, c.shape[3], wide, useful_threads(u.numel() * STATES)])
    return inputs, sizes
