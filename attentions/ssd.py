"""State space duality in chunks: inside a chunk a masked product of queries and keys, between chunks a state.

    h[t] = exp(step[t] · rate) · h[t - 1] + step[t] · x[t] ⊗ b[t]        y[t] = c[t] · h[t]

Dao and Gu 2024, Transformers are SSMs, https://arxiv.org/abs/2405.21060, section 6. One decay a head makes the sum
over a chunk (C Bᵀ ∘ L) X with L[i, j] = exp(a[j + 1] + … + a[i]). Each of those sums is taken by itself: the
difference of two running sums would cancel. Forward is a C++ kernel on the CPU, and torch elsewhere and without a
compiler; backward runs the same chunks in torch, a segment at a time.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from attentions.native import selective_scan as native
from attentions.segments import segmented

CHUNK = 64  # positions whose pairs are scored; the state then costs as much as the pairs at a head of 64
SEGMENT = 2048  # positions worked on at once, so that what lies between the products stays in the cache


def segment_sums(log: Float[Tensor, "*batch Q"]) -> Float[Tensor, "*batch Q Q"]:
    """Entry i, j is log[j + 1] + … + log[i] for j <= i, and minus infinity above the diagonal."""
    size = log.shape[-1]
    ones = torch.ones(size, size, dtype=torch.bool, device=log.device)
    terms = log[..., :, None].expand(*log.shape, size).masked_fill(~ones.tril(-1), 0)
    return terms.cumsum(-2).masked_fill(~ones.tril(), -torch.inf)


def ssd(
    x: Float[Tensor, "B G M E"],
    step: Float[Tensor, "B G M 1"],
    rate: Float[Tensor, "G 1 1"],
    b: Float[Tensor, "B G M S"],
    c: Float[Tensor, "B G R N S"],
    state: Float[Tensor, "B G E S"] | None = None,
    *,
    chunk: int = CHUNK,
) -> tuple[Float[Tensor, "B G R N E"], Float[Tensor, "B G E S"]]:
    """Output at the last N of M positions, and the state after the last; `state` is zeros if None."""
    if state is None:
        state = x.new_zeros(*x.shape[:2], x.shape[3], b.shape[3])
    past = b.shape[2] - c.shape[3]
    chunk = min(chunk, b.shape[2])

    def run(state: Tensor, rate: Tensor, *pieces: Tensor) -> tuple[Tensor, Tensor]:
        # Backward runs each segment again under autograd, which only torch's own operations have.
        fast = not torch.is_grad_enabled() and native.available(x.device)
        return (_native_segment if fast else _segment)(chunk, state, rate, *pieces)

    c = F.pad(c, (0, 0, past, 0)) if past else c
    learns = torch.is_grad_enabled() and any(y.requires_grad for y in (x, step, rate, b, c, state))
    if native.available(x.device) and not learns:
        out, state = _native_segment(chunk, state, rate, x, step, b, c)
    else:
        out, state = segmented(run, max(1, SEGMENT // chunk) * chunk, state, rate, x, step, b, c)
    return out[..., past:, :], state


def _native_segment(
    chunk: int, state: Tensor, rate: Tensor, x: Tensor, step: Tensor, b: Tensor, c: Tensor
) -> tuple[Tensor, Tensor]:
    return native.duality(x, (step * rate).squeeze(-1), step * b, c, state, chunk)


def _segment(
    chunk: int, state: Tensor, rate: Tensor, x: Tensor, step: Tensor, b: Tensor, c: Tensor
) -> tuple[Tensor, Tensor]:
    """A few chunks at once; what the last one lacks is filled with zeros, which neither decay nor add."""
    size = x.shape[2]
    log = step * rate
    x, log, b, c = (F.pad(y, (0, 0, 0, -size % chunk)).unflatten(-2, (-1, chunk)) for y in (x, log, step * b, c))
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
