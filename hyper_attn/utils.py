"""Building blocks of HyperAttention: squares of queries and keys, and exact attention with its log-sum-exp.

Axis letters: B batch, H query heads, G key heads, N queries, M keys, D dimension, P independent problems.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

SCORES_AT_ONCE = 2**25  # elements of a materialised score matrix, if there is no flash kernel
FLASH_DEVICES = ("cpu",)  # devices whose flash kernel takes a bias and returns its log-sum-exp in every dtype


@dataclass(frozen=True)
class RecursionLevel:
    """Squares of `keys` keys each, cut into `blocks` blocks; each is (first key, first query, queries)."""

    keys: int
    blocks: int
    squares: tuple[tuple[int, int, int], ...]


@dataclass(frozen=True)
class Leaves:
    """Exact causal attention within runs of `size` positions, from position `start` on."""

    start: int
    size: int


def squares(
    queries: int, keys: int, *, block_size: int, min_seq_len: int, causal: bool
) -> tuple[list[RecursionLevel], Leaves | None]:
    """Divide attention into approximated squares and an exact part.

    Causal: positions are halved until a part has at most `min_seq_len`, and at each level the later half of every part
    attends to its earlier half. Queries are the last of the keys' positions, so every square that has a query has all
    of its keys. A square of fewer than `min_seq_len` keys is one block.
    """

    def level(size: int, found: list[tuple[int, int, int]]) -> list[RecursionLevel]:
        blocks = 1 if size < min_seq_len else -(-size // block_size)
        return [RecursionLevel(size, blocks, tuple(found))] if found and size else []

    if not causal:
        return level(keys, [(0, 0, queries)]), None
    depth = 0
    while -(-keys // 2**depth) > min_seq_len:
        depth += 1
    leaf = -(-keys // 2**depth)
    before = keys - queries
    levels = []
    for half in (leaf * 2**i for i in range(depth)):
        parts = ((start, max(start + half, before), min(start + 2 * half, keys)) for start in range(0, keys, 2 * half))
        levels += level(half, [(start, begin - before, end - begin) for start, begin, end in parts if begin < end])
    start = before // leaf * leaf
    if start + leaf < keys:
        return levels, Leaves(start, leaf)
    # All queries are in one leaf: its keys before them form a square, and no padding is needed.
    past = RecursionLevel(before - start, 1, ((start, 0, queries),))
    return levels + [past] * (before > start), Leaves(before, queries)


def slots(count: Int[Tensor, " C"], blocks: int) -> tuple[Int[Tensor, "C blocks S"], Bool[Tensor, "C blocks S"]]:
    """Distribute ranks 0 to count - 1 over blocks, rank r to block r·blocks // count, and mark real slots.

    Blocks differ by at most one rank; the spare slot of a smaller one repeats a rank and is not real.
    """
    edge = torch.arange(blocks + 1, device=count.device) * count[:, None]
    edge = -(-edge // blocks)
    size = int((-(-count // blocks)).max())
    rank = edge[:, :-1, None] + torch.arange(size, device=count.device)
    real = rank < edge[:, 1:, None]
    return torch.minimum(rank, count[:, None, None] - 1), real


def in_leaves(x: Float[Tensor, "B H n D"], front: int, leaves: Leaves) -> Float[Tensor, "P H size D"]:
    """Cut rows into leaves, each its own problem; `front` rows of the first leaf are missing."""
    missing = -(front + x.shape[2]) % leaves.size
    x = F.pad(x, (0, 0, front, missing)) if front or missing else x
    return x.unflatten(2, (-1, leaves.size)).transpose(1, 2).flatten(0, 1)


def out_of_leaves(x: Float[Tensor, "P H size D"], batch: int, front: int, rows: int) -> Float[Tensor, "batch H rows D"]:
    """The inverse of `in_leaves`."""
    return x.unflatten(0, (batch, -1)).transpose(1, 2).flatten(2, 3)[:, :, front : front + rows]


def in_own_dtype(function: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap `function`, whose first argument is a tensor, to run without autocast on its device."""

    @functools.wraps(function)
    def run(x: Tensor, *rest: Any) -> Any:
        if not torch.amp.is_autocast_available(x.device.type):
            return function(x, *rest)
        with torch.autocast(x.device.type, enabled=False):
            return function(x, *rest)

    return run


@in_own_dtype
def attend(
    q: Float[Tensor, "P H N D"],
    k: Float[Tensor, "P G M D"],
    v: Float[Tensor, "P G M D"],
    bias: Float[Tensor, "P 1 1 M"] | None,
    scale: float,
    causal: bool,
) -> tuple[Float[Tensor, "P H N D"], Float[Tensor, "P H N"]]:
    """Softmax attention and the log-sum-exp of its scores; `bias` is added to the scores of each key."""
    if q.device.type in FLASH_DEVICES:
        op = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        q, k, v = (_in_one_piece(x) for x in (q, k, v))
        return op(q, k, v, 0.0, causal, attn_mask=bias, scale=scale)
    outs, sums = [], []
    for part in _parts(q, k):
        scores = _scores(q[part], k[part], None if bias is None else bias[part], scale, causal)
        lse = scores.logsumexp(-1)
        weights = (scores - lse.unsqueeze(-1)).exp()
        outs.append(weights @ _every_head(v[part], q))
        sums.append(lse)
    return torch.cat(outs), torch.cat(sums)


@in_own_dtype
def attend_backward(
    grad: Float[Tensor, "P H N D"],
    grad_lse: Float[Tensor, "P H N"] | None,
    q: Float[Tensor, "P H N D"],
    k: Float[Tensor, "P G M D"],
    v: Float[Tensor, "P G M D"],
    out: Float[Tensor, "P H N D"],
    lse: Float[Tensor, "P H N"],
    bias: Float[Tensor, "P 1 1 M"] | None,
    scale: float,
    causal: bool,
) -> tuple[Float[Tensor, "P H N D"], Float[Tensor, "P G M D"], Float[Tensor, "P G M D"]]:
    """Gradients of q, k and v; these keys may be only part of what each row attends to.

    Given the whole row's `out` and `lse`, exp(score - lse) is a key's final weight, so each part's gradient is exact
    and the merge needs no gradient of its own.
    """
    if q.device.type in FLASH_DEVICES and grad_lse is None:
        op = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
        grad, q, k, v, out = (_in_one_piece(x) for x in (grad, q, k, v, out))
        return op(grad, q, k, v, out, lse, 0.0, causal, attn_mask=bias, scale=scale)
    delta = (grad * out).sum(-1)
    delta = delta if grad_lse is None else delta - grad_lse
    grads = []
    for part in _parts(q, k):
        keys, values = _every_head(k[part], q), _every_head(v[part], q)
        scores = _scores(q[part], k[part], None if bias is None else bias[part], scale, causal)
        weights = (scores - lse[part].unsqueeze(-1)).exp()
        slope = weights * (grad[part] @ values.mT - delta[part].unsqueeze(-1)) * scale
        of_keys, of_values = slope.mT @ q[part], weights.mT @ grad[part]
        of_keys, of_values = (x.unflatten(1, (k.shape[1], -1)).sum(2) for x in (of_keys, of_values))
        grads.append((slope @ keys, of_keys, of_values))
    dq, dk, dv = (torch.cat(x) for x in zip(*grads, strict=True))
    return dq, dk, dv


def _in_one_piece(x: Tensor) -> Tensor:
    """Make the last axis contiguous: the flash kernel silently misreads tensors where it is not."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _parts(q: Tensor, k: Tensor) -> list[slice]:
    step = max(1, SCORES_AT_ONCE // (q.shape[1] * q.shape[2] * k.shape[2]))
    return [slice(i, i + step) for i in range(0, len(q), step)]


def _every_head(x: Tensor, q: Tensor) -> Tensor:
    return x if x.shape[1] == q.shape[1] else x.repeat_interleave(q.shape[1] // x.shape[1], dim=1)


def _scores(q: Tensor, k: Tensor, bias: Tensor | None, scale: float, causal: bool) -> Tensor:
    scores = q @ _every_head(k, q).mT * scale
    scores = scores if bias is None else scores + bias
    later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1) if causal else None
    return scores if later is None else scores.masked_fill_(later, -torch.inf)
