"""State space duality in chunks: a masked product of queries and keys inside a chunk, a state between chunks.

    h[t] = exp(step[t] · rate) · h[t - 1] + step[t] · x[t] ⊗ b[t]        y[t] = c[t] · h[t]

Dao and Gu 2024, Transformers are SSMs, https://arxiv.org/abs/2405.21060, section 6. With one decay per head, the sum
over a chunk is (C Bᵀ ∘ L) X with L[i, j] = exp(a[j + 1] + … + a[i]). Each of those sums is computed separately, because
the difference of two running sums would cancel. Runs in a C++ kernel on the CPU; without a compiler, and on other
devices, it runs in torch, one segment at a time.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from attentions.common.derivatives import Gradients, first_order
from attentions.native import duality as native
from attentions.recurrent.segments import segmented
from transformer_vq.precision import in_own_dtype

CHUNK = 64  # positions whose pairs are scored; with a head of 64 the state costs as much as the pairs
SEGMENT = 2048  # positions processed at once, so that intermediate results stay in cache


def kernel_name(device: torch.device) -> str:
    """Name of the implementation that runs on a device: "native" or "torch fallback"."""
    return "native" if native.available(device) else "torch fallback"


def segment_sums(log: Float[Tensor, "*batch Q"]) -> Float[Tensor, "*batch Q Q"]:
    """Entry i, j is log[j + 1] + … + log[i] for j <= i, and minus infinity above the diagonal."""
    size = log.shape[-1]
    ones = torch.ones(size, size, dtype=torch.bool, device=log.device)
    terms = log[..., :, None].expand(*log.shape, size).masked_fill(~ones.tril(-1), 0)
    return terms.cumsum(-2).masked_fill(~ones.tril(), -torch.inf)


@in_own_dtype
def ssd(
    x: Float[Tensor, "B G M E"],
    step: Float[Tensor, "B G M 1"],
    rate: Float[Tensor, "G 1 1"],
    b: Float[Tensor, "B K M S"],
    c: Float[Tensor, "B K R N S"],
    state: Float[Tensor, "B G E S"] | None = None,
    *,
    chunk: int = CHUNK,
) -> tuple[Float[Tensor, "B G R N E"], Float[Tensor, "B G E S"]]:
    """Return the output at the last N of M positions and the state after the last; `state` is zeros if None.

    K is G, or 1 if all heads share one b and one c.
    """
    if state is None:
        state = x.new_zeros(*x.shape[:2], x.shape[3], b.shape[3])
    past = b.shape[2] - c.shape[3]
    chunk = max(1, min(chunk, b.shape[2]))
    c = F.pad(c, (0, 0, past, 0)) if past else c
    if native.available(x.device):
        out, last = _NativeDuality.apply(step * x, (step * rate).squeeze(-1), b, c, state, chunk)  # type: ignore[misc]
    else:
        segment = functools.partial(_segment, chunk)
        out, last = segmented(segment, max(1, SEGMENT // chunk) * chunk, state, rate, x, step, b, c)
    return out[..., past:, :], last


class _NativeDuality(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, log: Tensor, b: Tensor, c: Tensor, state: Tensor, chunk: int
    ) -> tuple[Tensor, Tensor]:
        learns = any(ctx.needs_input_grad)
        out, last, before = native.forward(x, log, b, c, state, chunk, checkpoints=learns)
        if learns:
            ctx.save_for_backward(x, log, b, c, before, state)  # state is saved only for the graph
            ctx.chunk = chunk
        return out, last

    @staticmethod
    @first_order
    def backward(ctx: Any, saved: tuple[Tensor, ...], *grads: Tensor) -> Gradients:
        of_out, of_last = grads
        x, log, b, c, before, _ = saved
        return *native.backward(of_out, of_last, x, log, b, c, before, ctx.chunk), None


def _segment(
    chunk: int, state: Tensor, rate: Tensor, x: Tensor, step: Tensor, b: Tensor, c: Tensor
) -> tuple[Tensor, Tensor]:
    """Run a few chunks at once; the last one is padded with zeros, which neither decay nor add anything."""
    size, fill = x.shape[2], -x.shape[2] % chunk
    pieces = (x, step * rate, step * b, c)  # NaN keys are masked with their scores; NaN values would not be
    whole = (F.pad(y, (0, 0, 0, fill)) if fill else y for y in pieces)
    x, log, b, c = (y.unflatten(-2, (-1, chunk)) for y in whole)
    log = log.squeeze(-1)
    decay = segment_sums(log).exp()
    from_start = log.cumsum(-1).exp()
    scores = torch.matmul(c, b.transpose(-1, -2)[:, :, None])
    inside = torch.matmul((scores * decay[:, :, None]).tril(), x[:, :, None])  # tril: zero times NaN is NaN
    added = torch.matmul((x * decay[..., -1, :, None]).transpose(-1, -2), b)
    starts = []
    for entry, kept in zip(added.unbind(2), from_start[..., -1:, None].unbind(2), strict=True):
        starts.append(state)
        state = torch.addcmul(entry, kept, state)
    before = torch.stack(starts, dim=2)[:, :, None].transpose(-1, -2)
    out = inside + torch.matmul(c * from_start[:, :, None, ..., None], before)
    return out.flatten(-3, -2)[..., :size, :], state
