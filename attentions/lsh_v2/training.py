"""Training the hash: a query should share a bucket with the keys it attends to, and buckets should be even.

The soft assignment of a vector is p(x) = softmax([z; -z]/τ) in each rotation; two vectors collide in a round with
probability p(q)·p(k), multiplied over its rotations. With exact attention A on sampled rows, outside the band, the loss
is

    - Σ_ij A_ij (1 - Π_rounds (1 - p(q_i)·p(k_j)))  -  balance · entropy of the mean assignment

The first term is the attention recall, so the rounds divide the work: with a sum of logarithms they all learn the same
buckets, and more training finds less. The entropy is Rényi's of order two, the logarithm of how many keys share a
bucket, which is what a window has room for. The sum over j is estimated with keys drawn from A. The optimiser is Adam
with its own random generator: torch's global random state is not touched.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from transformer_vq.precision import in_own_dtype

if TYPE_CHECKING:
    from attentions.lsh_v2.hashing import LearnedHash

ROWS_AT_ONCE = 256  # rows of exact attention


@dataclass(frozen=True)
class HashTraining:
    """Setting (`scale`, `local`, `causal`) and hyper-parameters of training the hash.

    `tokens`: the last ones of a sample, used for training. `pool`: rows of their attention in all. `rows` and `keys`:
    rows per step and keys drawn for each. `others`: keys that should be spread over the buckets. τ falls from `hot` to
    `cold`.
    """

    scale: float
    local: int
    causal: bool
    steps: int
    seed: int
    tokens: int = 16_384
    pool: int = 4096
    rows: int = 128
    keys: int = 8
    others: int = 1024
    hot: float = 0.7
    cold: float = 0.2
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
    H, N, G = *q.shape[1:3], k.shape[1]
    chosen = torch.randperm(N, generator=draw)[:rows].sort().values
    found = []
    for h in range(H):
        parts = [_drawn(q[:, h], k[:, h * G // H], part.to(q.device), how, draw) for part in chosen.split(ROWS_AT_ONCE)]
        found.append([torch.cat(x, 1) for x in zip(*parts, strict=True)])
    heads = [torch.stack(x, 1).unflatten(1, (G, H // G)).flatten(2, 3) for x in zip(*found, strict=True)]
    return Pairs(*heads)


def _drawn(
    q: Float[Tensor, "B N D"],
    k: Float[Tensor, "B M D"],
    rows: Int[Tensor, " R"],
    how: HashTraining,
    draw: torch.Generator,
) -> tuple[Tensor, Tensor, Tensor]:
    """These rows of q, `keys` keys for each, and the mass outside the band."""
    at = rows + k.shape[1] - q.shape[1]
    keys = k[:, : int(at[-1]) + 1] if how.causal else k
    weights = _far_attention(q[:, rows], keys, at, how)
    mass = weights.sum(-1)
    weights[..., 0] += mass == 0  # rows fully inside the band draw some key, with weight zero
    place = torch.multinomial(weights.flatten(0, 1).cpu(), how.keys, replacement=True, generator=draw).to(q.device)
    place = place.view(len(q), -1, 1).expand(-1, -1, k.shape[2])
    return q[:, rows], keys.gather(1, place).unflatten(1, (len(rows), -1)), mass


def hash_loss(
    hashing: LearnedHash, pairs: Pairs, others: Float[Tensor, "B G K D"], how: HashTraining, temperature: float
) -> Float[Tensor, ""]:
    """Loss on these pairs; `others` are keys that should fill all buckets evenly. No input gets a gradient."""
    of_q = hashing.soft(pairs.q, temperature).unsqueeze(3)
    of_k = hashing.soft(pairs.k.flatten(2, 3), temperature).unflatten(2, pairs.k.shape[2:4])
    meet = (of_q * of_k).sum(-1).prod(-1)  # (B, G, Q, K, rounds)
    found = 1 - (1 - meet).prod(-1)
    kept = (found.mean(3) * pairs.mass).sum(2) / pairs.mass.sum(2).clamp(min=1e-9)
    first, second = hashing.soft(others, temperature).unbind(4)  # (B, G, K, rounds, buckets)
    mean = torch.einsum("bgkra,bgkrc->grac", first, second) / (first.shape[0] * first.shape[2])
    return how.balance * mean.square().sum((-1, -2)).log().mean() - kept.mean()


@in_own_dtype
def auxiliary_loss(
    hashing: LearnedHash, q: Float[Tensor, "B H N D"], k: Float[Tensor, "B G M D"], how: HashTraining
) -> Float[Tensor, ""]:
    """The loss on rows drawn from this sequence."""
    wide = torch.promote_types(q.dtype, torch.float32)
    q, k, draw = q.detach().to(wide), k.detach().to(wide), torch.Generator().manual_seed(how.seed)
    pairs = draw_pairs(q, k, how.rows, how, draw)
    return hash_loss(hashing, pairs, _some(k, how.others, draw), how, how.cold)


@in_own_dtype
def train(hashing: LearnedHash, q: Float[Tensor, "B H N D"], k: Float[Tensor, "B G M D"], how: HashTraining) -> None:
    """Run `steps` steps of Adam on the loss, in the functions' dtype."""
    if not how.steps:
        return
    q, k = (x.detach().to(hashing.projections.dtype) for x in (q, k))
    draw = torch.Generator().manual_seed(how.seed)
    q, k = (x[:, :, -how.tokens :] for x in (q, k))
    pairs = draw_pairs(q, k, how.pool, how, draw)
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
    optimizer.zero_grad()


def _some(k: Float[Tensor, "B G M D"], count: int, draw: torch.Generator) -> Float[Tensor, "B G K D"]:
    return k[:, :, torch.randperm(k.shape[2], generator=draw)[:count].to(k.device)]


def _far_attention(
    q: Float[Tensor, "B R D"], k: Float[Tensor, "B M D"], at: Int[Tensor, " R"], how: HashTraining
) -> Float[Tensor, "B R M"]:
    """Exact attention of queries at these positions, with zero weight inside the band."""
    key, at = torch.arange(k.shape[1], device=q.device), at[:, None]
    scores = q * how.scale @ k.mT
    near = key > at - how.local
    if how.causal:  # later keys have no weight, so `near` needs no upper limit
        scores.masked_fill_(key > at, -torch.inf)
    else:
        near &= key < at + how.local
    return scores.softmax(-1).masked_fill_(near, 0.0)
