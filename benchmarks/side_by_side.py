"""Time methods in turns in one process, so that their ratio holds on a machine whose speed drifts."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from harness.measure.elapsed import time_in_turns


def medians(methods: Mapping[str, Callable[[], object]], *, rounds: int) -> dict[str, float]:
    """Return median seconds per method over rounds that run each method once, after one warm-up round."""
    return {name: statistics.median(found) for name, found in time_in_turns(methods, rounds).items()}


def gaussian(n: int, *, heads: int = 4, head_dim: int = 64, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Return q, k, v of batch 1 in float32."""
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(1, heads, n, head_dim, generator=generator) for _ in range(3))
    return q, k, v


def forward_and_backward(attention: torch.nn.Module, inputs: tuple[Tensor, ...]) -> Callable[[], object]:
    """Return a call that computes the attention and the gradients of the sum of its output."""
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    return lambda: torch.autograd.grad(attention(*leaves).sum(), leaves, allow_unused=True)
