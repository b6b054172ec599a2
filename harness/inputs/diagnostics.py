"""Measure how uneven attention is on given inputs, from the exact weights of sampled query rows."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from harness.inputs.base import Inputs, generator

TOP = 0.01


@dataclass(frozen=True)
class Unevenness:
    """Means over the batch and the sampled rows, one number per query head.

    `entropy_nats` is the entropy of the softmax weights; `top_mass` the weight on the heaviest 1 % of the attended
    keys, rounded up; `uniform_nats` the entropy of equal weights on the same rows.
    """

    entropy_nats: tuple[float, ...]
    top_mass: tuple[float, ...]
    uniform_nats: float


def diagnose(inputs: Inputs, *, causal: bool, rows: int = 64, seed: int = 0) -> Unevenness:
    """Measure `rows` query rows in float64, drawn from the later half of the queries, where contexts are long."""
    at = sample_rows(inputs.q.shape[2], rows, seed)
    group = inputs.q.shape[1] // inputs.k.shape[1]
    allowed = visible_keys(inputs, at, causal)
    heads = []
    for head in range(inputs.q.shape[1]):
        weights = attention_weights(inputs.q[:, head, at], inputs.k[:, head // group], allowed)
        heads.append((entropy(weights), top_mass(weights, allowed)))
    nats, mass = zip(*heads, strict=True)
    return Unevenness(nats, mass, allowed.double().log().mean().item())


def sample_rows(queries: int, rows: int, seed: int) -> Tensor:
    """Return sorted indices of query rows in the later half; all of them if there are at most `rows`."""
    first = queries // 2
    drawn = torch.randperm(queries - first, generator=generator("rows", seed))[:rows]
    return drawn.sort().values + first


def visible_keys(inputs: Inputs, at: Tensor, causal: bool) -> Tensor:
    """Return how many keys each of these query rows attends to."""
    keys, queries = inputs.k.shape[2], inputs.q.shape[2]
    return at + keys - queries + 1 if causal else torch.full_like(at, keys)


def attention_weights(q: Float[Tensor, "B R D"], k: Float[Tensor, "B M D"], allowed: Tensor) -> Float[Tensor, "B R M"]:
    """Exact softmax weights in float64; each row sees its first `allowed` keys."""
    scores = q.double() @ k.double().transpose(1, 2) / math.sqrt(q.shape[-1])
    return scores.masked_fill_(torch.arange(k.shape[1]) >= allowed[:, None], -torch.inf).softmax(-1)


def entropy(weights: Float[Tensor, "B R M"]) -> float:
    """Mean entropy in nats."""
    return torch.special.entr(weights).sum(-1).mean().item()


def top_mass(weights: Float[Tensor, "B R M"], allowed: Tensor) -> float:
    """Mean weight on the heaviest 1 % of the allowed keys, at least one key."""
    counts = (allowed * TOP).ceil().long()
    heaviest = weights.topk(int(counts.max()), dim=-1).values.cumsum(-1)
    return heaviest.gather(-1, (counts - 1)[None, :, None].expand(len(weights), -1, 1)).mean().item()
