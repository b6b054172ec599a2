"""Base of all support-set methods: softmax attention restricted to a set of keys for each query.

Each query i has a support S_i of keys; the output is softmax attention over S_i, exactly normalised. A method that
counts a key once per table that finds it reports multiplicities above one.
"""

from __future__ import annotations

from abc import abstractmethod

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from attentions.base import Attention
from attentions.common.reference import causal_pairs, softmax_attention

STRETCH = 8192  # keys whose scores are held at once; those of 64 rows then fit in cache


class SupportAttention(Attention):
    """An attention defined by a support set; subclasses implement `multiplicity` and `forward`.

    `once` states that no key ever counts more than once.
    """

    once: bool = True

    @abstractmethod
    def multiplicity(
        self,
        q: Float[Tensor, "B H N D"],
        k: Float[Tensor, "B G M D"],
        *,
        first: Int[Tensor, " B"] | None = None,
        rows: Int[Tensor, " R"] | None = None,
    ) -> Int[Tensor, "B H R M"]:
        """Return how often each key counts for each query row, zero outside the support; slow reference code."""

    def naive(
        self,
        q: Float[Tensor, "B H N D"],
        k: Float[Tensor, "B G M D"],
        v: Float[Tensor, "B G M E"],
        *,
        first: Int[Tensor, " B"] | None = None,
        rows: Int[Tensor, " R"] | None = None,
    ) -> Float[Tensor, "B H R E"]:
        count = self.multiplicity(q, k, first=first, rows=rows)
        weight = None if self.once else count
        return softmax_attention(q, k, v, count > 0, self.scale, rows=rows, weight=weight)

    def kept_mass(
        self,
        q: Float[Tensor, "B H N D"],
        k: Float[Tensor, "B G M D"],
        *,
        first: Int[Tensor, " B"] | None = None,
        rows: Int[Tensor, " R"] | None = None,
    ) -> Float[Tensor, "B H R"]:
        """Share of the target's softmax weight inside the support of each query row, from 0 to 1."""
        inside = self.multiplicity(q, k, first=first, rows=rows) > 0
        keys = self.target_keys(q, k)
        pairs = self.target_pairs(q.shape[2], k.shape[2], first=first, rows=rows, device=q.device)
        group = self.heads // keys.shape[1]
        chosen = (q if rows is None else q[:, :, rows.to(q.device)]).double()
        shares = [
            _share(chosen[:, head], keys[:, head // group], pairs[:, 0], inside[:, head], self.scale)
            for head in range(self.heads)
        ]
        return torch.stack(shares, dim=1)

    def target_keys(
        self, q: Float[Tensor, "B H N D"], k: Float[Tensor, "B G M D"]
    ) -> Float[Tensor, "B heads_of_keys M D"]:
        """Return the keys that the target scores queries against."""
        return k

    def target_pairs(
        self,
        queries: int,
        keys: int,
        *,
        first: Int[Tensor, " B"] | None,
        rows: Int[Tensor, " R"] | None,
        device: torch.device,
    ) -> Bool[Tensor, "B 1 R M"]:
        """Return which keys the target allows for each query row."""
        return causal_pairs(queries, keys, causal=self.causal, first=first, rows=rows, device=device)


def window_total(queries: int, keys: int, window: int, *, causal: bool) -> int:
    """Number of pairs of one head: the last `window` keys up to each query and, if not causal, the first after it."""
    past = _clipped(keys - queries + 1, keys, window)
    return past if causal else past + _clipped(0, queries - 1, window)


def _clipped(low: int, high: int, most: int) -> int:
    """The sum of min(x, most) over the integers x from low to high."""
    edge = min(max(most, low - 1), high)
    return (low + edge) * (edge - low + 1) // 2 + (high - edge) * most


def _share(
    q: Float[Tensor, "B R D"],
    k: Float[Tensor, "B M D"],
    pairs: Bool[Tensor, "#B R M"],
    inside: Bool[Tensor, "B R M"],
    scale: float,
) -> Float[Tensor, "B R"]:
    """Softmax weight of the pairs inside the support, computed over slices of keys to bound memory."""
    every = kept = q.new_full(q.shape[:2], -torch.inf)
    for part in torch.arange(k.shape[1], device=k.device).split(STRETCH):
        here = slice(int(part[0]), int(part[-1]) + 1)
        scores = (q @ k[:, here].double().transpose(1, 2) * scale).masked_fill(~pairs[..., here], -torch.inf)
        every = torch.logaddexp(every, scores.logsumexp(-1))
        kept = torch.logaddexp(kept, scores.masked_fill(~inside[..., here], -torch.inf).logsumexp(-1))
    return (kept - every).exp()
