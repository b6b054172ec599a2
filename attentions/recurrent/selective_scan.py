"""The selective scan: each channel of each state decays at its own rate, which the input selects.

    h[t] = exp(delta[t] · a) · h[t - 1] + delta[t] · u[t] · b[t]        y[t] = c[t] · h[t]

Gu and Dao 2023, Mamba, https://arxiv.org/abs/2312.00752, algorithm 2 (S6). Runs in a C++ kernel on the CPU and a Triton
kernel on CUDA. Without a compiler, without Triton and on other devices it runs in torch, in chunks whose steps are
combined by doubling.
"""

from __future__ import annotations

import functools
import importlib.util
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from attentions.common.derivatives import Gradients, first_order
from attentions.native import selective_scan as native
from attentions.recurrent.segments import segmented
from transformer_vq.precision import in_own_dtype

CHUNK = 64  # positions that the torch fallback holds at once, each with all its states


@functools.cache
def _triton() -> ModuleType | None:
    """The Triton kernels, imported on first use, or None if Triton is not installed."""
    if importlib.util.find_spec("triton") is None:
        return None
    return importlib.import_module("attentions.native.selective_scan_triton")


def _kernel(device: torch.device) -> ModuleType | None:
    """The module whose `forward` and `backward` run on this device, or None."""
    if device.type == "cuda":
        return _triton()
    return native if native.available(device) else None


def kernel_name(device: torch.device) -> str:
    """Name of the implementation that runs on a device: "native", "triton" or "torch fallback"."""
    kernel = _kernel(device)
    return "torch fallback" if kernel is None else "native" if kernel is native else "triton"


@in_own_dtype
def selective_scan(
    u: Float[Tensor, "B G M E"],
    delta: Float[Tensor, "B G M E"],
    a: Float[Tensor, "G E S"],
    b: Float[Tensor, "B G M S"],
    c: Float[Tensor, "B G R N S"],
    state: Float[Tensor, "B G E S"] | None = None,
) -> tuple[Float[Tensor, "B G R N E"], Float[Tensor, "B G E S"]]:
    """Return the output at the last N of M positions and the state after the last; float32 or float64.

    `state` is the initial state, zeros if None. The kernels give no gradient of the initial and final states.
    """
    if state is None:
        state = u.new_zeros(*u.shape[:2], u.shape[3], a.shape[2])
    kernel = _kernel(u.device)
    run = doubling if kernel is None else functools.partial(_groups, kernel)
    return run(u, delta, a, b, c, state)


def doubling(
    u: Float[Tensor, "B G M E"],
    delta: Float[Tensor, "B G M E"],
    a: Float[Tensor, "G E S"],
    b: Float[Tensor, "B G M S"],
    c: Float[Tensor, "B G R N S"],
    state: Float[Tensor, "B G E S"],
    *,
    chunk: int = CHUNK,
) -> tuple[Float[Tensor, "B G R N E"], Float[Tensor, "B G E S"]]:
    """The scan in plain torch; memory beyond inputs and output is that of one chunk and of the states."""
    past = b.shape[2] - c.shape[3]
    c = F.pad(c, (0, 0, past, 0)) if past else c
    out, state = segmented(_doubling_chunk, chunk, state, a, u, delta, b, c)
    return out[..., past:, :], state


def _doubling_chunk(state: Tensor, a: Tensor, u: Tensor, delta: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """After the step of width w, h[t] holds the inputs of the last 2w positions, and log their combined decay.

    Logarithms are sums of negative numbers, never differences: there is no overflow and no cancellation.
    """
    log = delta[..., None] * a[:, None]
    h = (delta * u)[..., None] * b[..., None, :]
    h = torch.cat((torch.addcmul(h[:, :, :1], log[:, :, :1].exp(), state[:, :, None]), h[:, :, 1:]), dim=2)
    width = 1
    while width < u.shape[2]:
        joined = torch.addcmul(h[:, :, width:], log[:, :, width:].exp(), h[:, :, :-width])
        h = torch.cat((h[:, :, :width], joined), dim=2)
        log = torch.cat((log[:, :, :width], log[:, :, width:] + log[:, :, :-width]), dim=2)
        width *= 2
    return torch.einsum("bgrts,bgtes->bgrte", c, h), h[:, :, -1]


def _groups(
    kernel: ModuleType, u: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """Split states into groups of 16 for the kernels, padded with zeros, and add up the groups' outputs."""
    assert not state.requires_grad, "the kernels do not compute the gradient of the initial state"
    size = a.shape[-1]
    fill = -size % native.STATES
    a, b, c, state = (F.pad(x, (0, fill)) if fill else x for x in (a, b, c, state))
    groups = zip(*(x.split(native.STATES, dim=-1) for x in (a, b, c, state)), strict=True)
    found = [_KernelScan.apply(kernel, u, delta, *group) for group in groups]
    outs, states = zip(*found, strict=True)
    out = outs[0] if len(outs) == 1 else torch.stack(outs).sum(0)
    return out, torch.cat(states, dim=-1)[..., :size]


class _KernelScan(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, kernel: ModuleType, u: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, state: Tensor
    ) -> tuple[Tensor, Tensor]:
        learns = any(ctx.needs_input_grad)
        out, last, states = kernel.forward(u, delta, a, b, c, state, checkpoints=learns)
        if learns:
            ctx.kernel = kernel
            ctx.save_for_backward(u, delta, a, b, c, states)
        ctx.mark_non_differentiable(last)
        return out, last

    @staticmethod
    @first_order
    def backward(ctx: Any, saved: tuple[Tensor, ...], *grads: Tensor) -> Gradients:
        return None, *ctx.kernel.backward(grads[0], *saved), None
