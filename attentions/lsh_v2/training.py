"""Training the hash: a query and the keys that it weighs should share a bucket, and buckets should be even.

The soft assignment of a vector is p(x) = softmax([z; -z]/τ) in each rotation; two vectors meet in a round with the
probability p(q)·p(k), multiplied over its rotations. With exact attention A on sampled rows, outside the band, the
loss is

    - Σ_ij A_ij (1 - Π_rounds (1 - p(q_i)·p(k_j)))  -  balance · entropy of the mean assignment

The first term is the kept mass itself, so that rounds divide the work: with a sum of logarithms they all learn the same
buckets, and more training finds less. The entropy is Rényi's of order two, the logarithm of how many keys share a
bucket, which is what a window has room for. The sum over j is estimated by keys drawn from A. Adam, with
a generator of its own: torch's global random state is not touched.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from attentions.lsh_v2.hashing import LearnedHash
from attentions.reference import causal_pairs


@dataclass(frozen=True)
class HashTraining:
    """Circumstances (`scale`, `local`, `causal`) and hyper-parameters: `pool` rows of attention in all, `rows` of
    them and `keys` drawn for each in a step, and `others` keys to be spread; τ falls from `hot` to `cold`.
    """

    scale: float
    local: int
    causal: bool
    steps: int
    seed: int
    pool: int = 1024
    rows: int = 128
    keys: int = 8
    others: int = 1024
    hot: float = 0.5
    cold: float = 0.15
    balance: float = 0.5
    rate: float = 0.05


@dataclass(frozen=True)
class Pairs:
    """Queries and, for each, keys drawn from its attention outside the band; `mass` is the attention there."""

    q: Float[Tensor, "B G Q D"]
    k: Float[Tensor, "B G Q K D"]
    mass: Float[Tensor, "B G Q"]


def draw_pairs(
    q: Float[Tensor, "B H N D"], k: Float[Tensor, "B G M D"], rows: int, how: HashTraining, draw: torch.Generator
) -> Pairs:
    """`rows` positions, the same for every head, with keys drawn from exact attention."""
    (B, H, N, D), G = q.shape, k.shape[1]
    chosen = torch.randperm(N, generator=draw)[:rows].sort().values.to(q.device)
    found = []
    for h in range(H):
        keys = k[:, h * G // H]
        weights = _far_attention(q[:, h, chosen], keys, chosen, N, how)
        mass = weights.sum(-1)
        even = weights + (mass == 0).unsqueeze(-1)  # a row that the band holds whole counts nothing
        at = torch.multinomial(even.flatten(0, 1).cpu(), how.keys, replacement=True, generator=draw).to(q.device)
        drawn = keys[torch.arange(B, device=q.device)[:, None], at.view(B, -1)]
        found.append((q[:, h, chosen], drawn.view(B, len(chosen), how.keys, D), mass))
    parts = [torch.stack(x, 1).unflatten(1, (G, H // G)).flatten(2, 3) for x in zip(*found, strict=True)]
    return Pairs(*parts)


def hash_loss(
    hashing: LearnedHash, pairs: Pairs, others: Float[Tensor, "B G K D"], how: HashTraining, temperature: float
) -> Float[Tensor, ""]:
    """Loss on these pairs; `others` are keys that should fill all buckets evenly. None of them gets a gradient."""
    of_q = hashing.soft(pairs.q, temperature).unsqueeze(3)
    of_k = hashing.soft(pairs.k.flatten(2, 3), temperature).unflatten(2, pairs.k.shape[2:4])
    meet = (of_q + of_k).logsumexp(-1).sum(-1).exp()  # B, G, Q, K, rounds
    found = 1 - (1 - meet).clamp(min=1e-6).log().sum(-1).exp()
    kept = (found.mean(3) * pairs.mass).sum(2) / pairs.mass.sum(2).clamp(min=1e-9)
    first, second = hashing.soft(others, temperature).exp().unbind(4)  # B, G, K, rounds, buckets
    mean = torch.einsum("bgkra,bgkrc->grac", first, second) / (first.shape[0] * first.shape[2])
    return how.balance * mean.square().sum((-1, -2)).log().mean() - kept.mean()


def auxiliary_loss(
    hashing: LearnedHash, q: Float[Tensor, "B H N D"], k: Float[Tensor, "B G M D"], how: HashTraining
) -> Float[Tensor, ""]:
    """The loss on rows drawn from this sequence."""
    wide = torch.promote_types(q.dtype, torch.float32)
    q, k, draw = q.detach().to(wide), k.detach().to(wide), torch.Generator().manual_seed(how.seed)
    pairs = draw_pairs(q, k, how.rows, how, draw)
    return hash_loss(hashing, pairs, _some(k, how.others, draw), how, how.cold)


def train(hashing: LearnedHash, q: Float[Tensor, "B H N D"], k: Float[Tensor, "B G M D"], how: HashTraining) -> None:
    """`steps` of Adam on the loss, in float32 at least whatever the parameters' dtype."""
    if not how.steps:
        return
    wide = torch.promote_types(hashing.projections.dtype, torch.float32)
    q, k, draw = q.detach().to(wide), k.detach().to(wide), torch.Generator().manual_seed(how.seed)
    pairs = draw_pairs(q, k, how.pool, how, draw)
    dtypes = {name: p.dtype for name, p in hashing.named_parameters()}
    hashing.to(wide)
    optimizer = torch.optim.Adam(hashing.parameters(), lr=how.rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, how.steps)
    with torch.enable_grad():
        for step in range(how.steps):
            optimizer.zero_grad()
            one = torch.randperm(pairs.q.shape[2], generator=draw)[: how.rows].to(k.device)
            some = Pairs(pairs.q[:, :, one], pairs.k[:, :, one], pairs.mass[:, :, one])
            temperature = how.hot * (how.cold / how.hot) ** (step / how.steps)
            hash_loss(hashing, some, _some(k, how.others, draw), how, temperature).backward()
            optimizer.step()
            schedule.step()
    for name, p in hashing.named_parameters():
        p.data, p.grad = p.data.to(dtypes[name]), None


def _some(k: Float[Tensor, "B G M D"], count: int, draw: torch.Generator) -> Float[Tensor, "B G K D"]:
    return k[:, :, torch.randint(k.shape[2], (count,), generator=draw).to(k.device)]


def _far_attention(
    q: Float[Tensor, "B R D"], k: Float[Tensor, "B M D"], rows: Int[Tensor, " R"], queries: int, how: HashTraining
) -> Float[Tensor, "B R M"]:
    """Exact attention of these rows without what the band holds anyway."""
    M = k.shape[1]
    pairs = causal_pairs(queries, M, causal=how.causal, first=None, rows=rows, device=q.device)[:, 0]
    weights = (q @ k.mT * how.scale).masked_fill(~pairs, -torch.inf).softmax(-1)
    at = rows[:, None] + M - queries
    return weights * ((at - torch.arange(M, device=q.device)).abs() >= how.local)
