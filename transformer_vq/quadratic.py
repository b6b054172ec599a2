"""Quadratic references: dense softmax with each key, and optionally each query, replaced by its codeword."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from transformer_vq.codes import codewords, straight_through
from transformer_vq.kmeans import tally


def dense(
    q: Float[Tensor, "B H N D"],
    k: Float[Tensor, "B G M D"],
    codes: Int[Tensor, "B G M"],
    v: Float[Tensor, "B G M E"],
    codebook: Float[Tensor, "G S D"],
    *,
    scale: float,
    causal: bool,
    block: int,
    rows: Int[Tensor, " R"] | None = None,
) -> Float[Tensor, "B H R E"]:
    """Compute the same as `transformer_vq.codes`, with the same gradients, in float64, for all rows or `rows`.

    Queries are the last N of the M positions; their blocks are counted from the first query. `block` affects only the
    gradient of `k`.
    """
    N, M = q.shape[2], k.shape[2]
    rows = torch.arange(N, device=q.device) if rows is None else rows.to(q.device)
    q, v, hat = q.double(), v.double(), codewords(codebook.double(), codes)
    at, key = rows + M - N, torch.arange(M, device=q.device)
    seen = key <= at[:, None] if causal else torch.ones(len(rows), M, dtype=torch.bool, device=q.device)
    first_own = torch.where(torch.tensor(causal, device=q.device), rows // block * block + M - N, M)
    if not k.requires_grad:
        return _softmax(q[:, :, rows], hat, v, seen, scale)
    out = q.new_empty(*q.shape[:2], len(rows), v.shape[3])
    for own in first_own.unique().tolist():
        chosen = (first_own == own).nonzero()[:, 0]
        keys = _keys(k.double(), codes, hat, codebook.shape[1], own)
        out = out.index_copy(2, chosen, _softmax(q[:, :, rows[chosen]], keys, v, seen[chosen], scale))
    return out


def _keys(k: Tensor, codes: Tensor, hat: Tensor, size: int, own: int) -> Tensor:
    """Codewords with the key's own gradient from position `own` on, and before it the mean over its code's keys."""
    past = k[:, :, :own] - k[:, :, :own].detach()
    counts, sums = tally(past, codes[:, :, :own], size)
    means = (sums / counts.clamp(min=1).unsqueeze(-1)).gather(
        2, codes[:, :, :own].unsqueeze(-1).expand(-1, -1, -1, k.shape[3])
    )
    return torch.cat((hat[:, :, :own] + means, straight_through(k[:, :, own:], hat[:, :, own:])), dim=2)


def _softmax(q: Tensor, k: Tensor, v: Tensor, seen: Bool[Tensor, "R M"], scale: float) -> Tensor:
    """Softmax over the keys that each row may attend to, one head at a time."""
    group, heads = q.shape[1] // k.shape[1], []
    for head in range(q.shape[1]):
        scores = (q[:, head] @ k[:, head // group].mT * scale).masked_fill(~seen, -torch.inf)
        heads.append(scores.softmax(-1) @ v[:, head // group])
    return torch.stack(heads, dim=1)
