"""Exact attention mass received by keys, without materialising the matrix of all queries and keys.

There are two implementations with the same result: `eager` computes softmax over blocks of queries; `flash` takes the
log-sum-exp from torch's fused kernel and sums exp(score - log-sum-exp) over blocks of keys.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from attentions.common.settings import require
from bmrt.strategies.base import View, wide

Backend = Literal["eager", "flash"]
BACKENDS: tuple[str, ...] = ("eager", "flash")
BLOCK = 512  # queries or keys per step; affects memory only, not results


def require_backend(backend: str) -> None:
    """Raise ValueError for an unknown backend."""
    require(backend in BACKENDS, "backend", backend, f"one of {', '.join(BACKENDS)}")


def received(view: View, backend: str, *, block: int = BLOCK) -> Float[Tensor, "B G M"]:
    """Return the softmax weight that each token receives, summed over observing queries and the group's heads."""
    queries, keys = wide(view.queries), wide(view.keys)
    grouped = queries.unflatten(1, (keys.shape[1], -1))
    columns = _by_queries if backend == "eager" else _by_keys
    return columns(grouped, keys, view.closed(), view.scale, block)[..., : view.tokens]


def _by_queries(
    queries: Float[Tensor, "B G R W D"],
    keys: Float[Tensor, "B G N D"],
    closed: Bool[Tensor, "b W N"],
    scale: float,
    block: int,
) -> Float[Tensor, "B G N"]:
    total = keys.new_zeros(keys.shape[:3])
    for start in range(0, queries.shape[3], block):
        rows = slice(start, start + block)
        shut = closed[:, None, None, rows]
        weights = _scores(queries[:, :, :, rows], keys, scale).masked_fill_(shut, -math.inf).softmax(-1)
        total += weights.masked_fill_(shut, 0.0).sum((2, 3))  # a padding query sees no keys: 0/0
    return total


def _by_keys(
    queries: Float[Tensor, "B G R W D"],
    keys: Float[Tensor, "B G N D"],
    closed: Bool[Tensor, "b W N"],
    scale: float,
    block: int,
) -> Float[Tensor, "B G N"]:
    sums = _log_sum_exp(queries.flatten(1, 2), keys, closed, scale).view(*queries.shape[:4], 1)
    total = keys.new_empty(keys.shape[:3])
    for start in range(0, keys.shape[2], block):
        columns = slice(start, start + block)
        weights = (_scores(queries, keys[:, :, columns], scale) - sums).exp_()
        total[..., columns] = weights.masked_fill_(closed[:, None, None, :, columns], 0.0).sum((2, 3))
    return total


def _scores(queries: Tensor, keys: Tensor, scale: float) -> Tensor:
    """Compute scores (B, G, R, W, N) with one matrix product per key head."""
    flat = queries.flatten(2, 3) * scale @ keys.mT
    return flat.unflatten(2, queries.shape[2:4])


def _log_sum_exp(
    queries: Float[Tensor, "B H W D"], keys: Float[Tensor, "B G N D"], closed: Bool[Tensor, "b W N"], scale: float
) -> Float[Tensor, "B H W"]:
    """Compute the log-sum-exp with torch's fused attention; its output is discarded."""
    keys = keys.repeat_interleave(queries.shape[1] // keys.shape[1], 1)
    bias = torch.zeros_like(closed, dtype=queries.dtype).masked_fill_(closed, -math.inf)
    bias = bias[:, None].expand(len(queries), queries.shape[1], -1, -1)
    fused = torch.ops.aten
    if queries.device.type == "cpu":
        return fused._scaled_dot_product_flash_attention_for_cpu(queries, keys, keys, attn_mask=bias, scale=scale)[1]
    if queries.device.type == "cuda":
        # The only fused CUDA kernel that takes a mask; the mask's rows must be aligned to 16 values.
        room = -(-bias.shape[-1] // 16) * 16
        aligned = torch.empty(*bias.shape[:-1], room, dtype=bias.dtype, device=bias.device)[..., : bias.shape[-1]]
        aligned.copy_(bias)
        found = fused._scaled_dot_product_efficient_attention(queries, keys, keys, aligned, True, scale=scale)
        return found[1][..., : queries.shape[2]]
    raise ValueError(f"backend='flash' is not available on {queries.device.type}, only on cpu and cuda; use 'eager'")
