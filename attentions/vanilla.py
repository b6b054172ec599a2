"""Softmax attention that materialises the score matrix: the standard reference.

Vaswani et al. 2017, "Attention Is All You Need", https://arxiv.org/abs/1706.03762, equation 1. Memory beyond inputs and
output: the scores and their softmax, 2·B·H·N·M values, and a mask of N·M bytes. Half precision is computed in float32.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from attentions.base import Attention
from attentions.common.cache import CachedStream
from attentions.common.reference import causal_pairs

if TYPE_CHECKING:
    from attentions.common.stream import Stream


class Vanilla(Attention):
    """Softmax attention that materialises its scores."""

    paper = "https://arxiv.org/abs/1706.03762"
    exact = True
    claimed_time = "n^2"

    def forward(
        self,
        q: Float[Tensor, "B H N D"],
        k: Float[Tensor, "B G M D"],
        v: Float[Tensor, "B G M E"],
        *,
        first: Int[Tensor, " B"] | None = None,
    ) -> Float[Tensor, "B H N E"]:
        N, M = q.shape[2], k.shape[2]
        if q.dtype.itemsize < 4:  # scores can overflow float16 and are too coarse in bfloat16
            return self.forward(q.float(), k.float(), v.float(), first=first).to(q.dtype)
        # Query heads of a group share keys; unflattening lets the product broadcast them without a copy.
        grouped = (q * self.scale).unflatten(1, (self.kv_heads, -1)).flatten(2, 3)
        scores = (grouped @ k.transpose(2, 3)).unflatten(2, (-1, N))
        if self.causal or first is not None:
            pairs = causal_pairs(N, M, causal=self.causal, first=first, rows=None, device=q.device)
            scores.masked_fill_(~pairs.unsqueeze(1), torch.finfo(scores.dtype).min)
        out = (torch.softmax(scores, dim=-1).flatten(2, 3) @ v).unflatten(2, (-1, N)).flatten(1, 2)
        return out if first is None else zero_padding(out, first, M)

    def stream(self, batch: int) -> Stream | None:
        return CachedStream(self, batch) if self.causal else None


def zero_padding(out: Float[Tensor, "B H N E"], first: Int[Tensor, " B"], keys: int) -> Float[Tensor, "B H N E"]:
    """Zero the output of queries before the first real position of their row."""
    at = torch.arange(out.shape[2], device=out.device) + keys - out.shape[2]
    return out.masked_fill((at < first.to(out.device)[:, None])[:, None, :, None], 0.0)
