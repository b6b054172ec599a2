"""The C++ selective scan and state space duality behind tensors: any number of channels.

The kernels want full vectors of channels, and the scan 16 states at a time. Zeros fill the vectors up: a channel of
zeros stays zero.
"""

from __future__ import annotations

import ctypes

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from attentions.native import library

NAMES = {torch.float32: "float32", torch.float64: "float64"}
STATES = 16
VECTOR_BYTES = 64  # the widest vector that the kernel uses


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
    last = _fill(state.transpose(-1, -2), wide).clone()
    y = u.new_empty(*c.shape[:-1], wide)
    chunks = -(-u.shape[2] // _constant("chunk"))
    states = u.new_empty(u.shape[0], u.shape[1], chunks, STATES, wide) if checkpoints else None
    _call(f"scan_forward_{NAMES[u.dtype]}", *inputs, sizes, y, last, states)
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
    _call(f"scan_backward_{NAMES[u.dtype]}", *inputs, sizes, _fill(grad, wide), states, *outputs, parts)
    return du[..., :E], ddelta[..., :E], da.sum(0)[..., :E].transpose(-1, -2), db.sum(0), dc.sum(0)


def duality(
    x: Float[Tensor, "B G T E"],
    log: Float[Tensor, "B G T"],
    b: Float[Tensor, "B G T S"],
    c: Float[Tensor, "B G R T S"],
    state: Float[Tensor, "B G E S"],
    chunk: int,
) -> tuple[Float[Tensor, "B G R T E"], Float[Tensor, "B G E S"]]:
    """State space duality in chunks, forward: the output and the last state."""
    B, G, T, E = x.shape
    lanes, threads = VECTOR_BYTES // x.itemsize, torch.get_num_threads()
    wide = -(-E // lanes) * lanes
    parts = min(wide // lanes, -(-threads // (B * G)))  # idle threads take a share of the channels
    sizes = torch.tensor([B * G, c.shape[2], T, b.shape[3], wide, min(chunk, T), parts, threads])
    y, last = x.new_empty(*c.shape[:-1], wide), _fill(state.transpose(-1, -2), wide).clone()
    inputs = (_fill(x, wide), log.contiguous(), b.contiguous(), c.contiguous())
    _call(f"duality_{NAMES[x.dtype]}", *inputs, sizes, y, last)
    return y[..., :E], last[..., :E].transpose(-1, -2)


def _filled(u: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor) -> tuple[list[Tensor], Tensor]:
    B, G, M, E = u.shape
    lanes = VECTOR_BYTES // u.itemsize
    wide = -(-E // lanes) * lanes
    inputs = [*(_fill(x, wide) for x in (u, delta, a.transpose(-1, -2))), b.contiguous(), c.contiguous()]
    sizes = torch.tensor([B * G, G, c.shape[2], M, c.shape[3], wide, torch.get_num_threads()])
    return inputs, sizes


def _fill(x: Tensor, wide: int) -> Tensor:
    return (F.pad(x, (0, wide - x.shape[-1])) if wide > x.shape[-1] else x).contiguous()  # a pad of nothing copies


def _constant(name: str) -> int:
    kernel = library("selective_scan")
    assert kernel is not None, "ask available() first"
    function = getattr(kernel, f"scan_{name}")
    function.restype = ctypes.c_int64
    return function()


def _call(name: str, *arguments: Tensor | int | None) -> None:
    kernel = library("selective_scan")
    assert kernel is not None, "ask available() first"
    function = getattr(kernel, name)
    function.restype = None
    function(*(_pointer(x) for x in arguments))


def _pointer(x: Tensor | int | None) -> object:
    if isinstance(x, int):
        return ctypes.c_int64(x)
    return ctypes.c_void_p(None if x is None else x.data_ptr())
