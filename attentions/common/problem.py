"""The sizes of a call, and its cost by count."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Shaped
from torch import Tensor

if TYPE_CHECKING:
    from attentions.base import Attention


@dataclass(frozen=True)
class Problem:
    """Sizes and settings of one call, enough to decide whether it can run and at what cost."""

    batch: int
    heads: int
    kv_heads: int
    queries: int
    keys: int
    head_dim: int
    value_dim: int
    dtype: torch.dtype
    device: torch.device
    causal: bool
    backward: bool


@dataclass(frozen=True)
class Cost:
    """Cost of one forward call, counted rather than timed.

    `flops`: floating-point operations that the kernel executes; a multiply-add counts as two.
    `comparisons`: upper bound on the query-key scores that enter the output, over all heads and the batch; exact if
        their number does not depend on the data.
    `state_bytes`: what decoding must keep after the last key.
    `past_flops`: the part of `flops` spent on keys before the queries, which a stream has already computed.
    """

    flops: int
    comparisons: int
    state_bytes: int
    past_flops: int = 0


def problem_of(
    attention: Attention, q: Shaped[Tensor, "B H N D"], k: Shaped[Tensor, "B G M D"], *, backward: bool = False
) -> Problem:
    """Return the problem for a call of `attention` on q and k."""
    return Problem(
        batch=q.shape[0],
        heads=attention.heads,
        kv_heads=attention.kv_heads,
        queries=q.shape[2],
        keys=k.shape[2],
        head_dim=attention.head_dim,
        value_dim=attention.value_dim,
        dtype=q.dtype,
        device=q.device,
        causal=attention.causal,
        backward=backward,
    )
