"""A sliding window: each query attends to the nearest keys alone."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from attentions import Cost, Problem, Stream
from attentions.buckets.support import SupportAttention, window_total
from attentions.common.cache import CachedStream
from attentions.common.reference import causal_pairs, query_positions
from attentions.common.settings import require
from attentions.vanilla import zero_padding


class SlidingWindow(SupportAttention):
    """Softmax over the last `window` keys up to the query and, if not causal, the first `window` after it."""

    paper = "https://arxiv.org/abs/2004.05150"
    claimed_time = "n"

    def __init__(self, heads: int, head_dim: int, *, window: int = 128, **settings: Any) -> None:
        super().__init__(heads, head_dim, **settings)
        require(window >= 1, "window", window, "an integer of at least 1")
        self.window = window

    def forward(self, q: Tensor, k: Tensor, v: Tensor, *, first: Tensor | None = None) -> Tensor:
        if q.dtype.itemsize < 4:  # softmax needs more than half precision
            return self.forward(q.float(), k.float(), v.float(), first=first).to(q.dtype)
        queries, keys = q.shape[2], k.shape[2]
        before, after = self.window - 1, 0 if self.causal else self.window
        padded = (F.pad(x, (0, 0, before, after)) for x in (k, v))
        near = (x.unfold(2, before + 1 + after, 1)[:, :, keys - queries :] for x in padded)
        k_near, v_near = (x.repeat_interleave(self.heads // self.kv_heads, dim=1) for x in near)  # (B, H, N, D, W)
        at = torch.arange(keys - queries, keys, device=q.device)[:, None]
        key = at + torch.arange(-before, after + 1, device=q.device)  # (N, W): the position of each score's key
        real = (key >= (0 if first is None else first.to(q.device)[:, None, None])) & (key < keys)
        scores = torch.einsum("bhnd,bhndw->bhnw", q * self.scale, k_near)
        hidden = ~(real if first is None else real[:, None])
        weights = scores.masked_fill(hidden, torch.finfo(q.dtype).min).softmax(-1)
        out = torch.einsum("bhnw,bhnew->bhne", weights, v_near)
        return out if first is None else zero_padding(out, first, keys)

    def multiplicity(self, q: Tensor, k: Tensor, *, first: Tensor | None = None, rows: Tensor | None = None) -> Tensor:
        queries, keys = q.shape[2], k.shape[2]
        allowed = causal_pairs(queries, keys, causal=self.causal, first=first, rows=rows, device=q.device)
        ahead = torch.arange(keys, device=q.device) - query_positions(queries, keys, rows, q.device)[:, None]
        inside = allowed & (ahead > -self.window) & (ahead <= self.window)
        return inside.int().expand(q.shape[0], self.heads, -1, -1)

    def comparisons(self, q: Tensor, k: Tensor) -> Tensor:
        pairs = window_total(q.shape[2], k.shape[2], self.window, causal=self.causal)
        return torch.full(q.shape[:2], pairs, dtype=torch.int64, device=q.device)

    def cost(self, problem: Problem) -> Cost:
        pairs = window_total(problem.queries, problem.keys, self.window, causal=problem.causal)
        pairs *= problem.batch * problem.heads
        return Cost(
            flops=2 * pairs * (problem.head_dim + problem.value_dim),
            comparisons=pairs,
            state_bytes=super().cost(problem).state_bytes,
        )

    def stream(self, batch: int) -> Stream | None:
        return CachedStream(self, batch) if self.causal else None
