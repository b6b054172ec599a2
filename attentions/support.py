"""What all support-set methods share: softmax restricted to a set of keys for each query.

Each query i has a support S_i of keys; the output is softmax attention over S_i, exactly normalised. A
method that counts a key once for each table that finds it says so by multiplicities above one.
"""

from __future__ import annotations

from abc import abstractmethod

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from attentions.base import Attention
from attentions.reference import causal_pairs, softmax_attention


class SupportAttention(Attention):
    """An attention whose meaning is a support set; subclasses add `multiplicity` to `forward`.

    `once` says that no key ever counts more than once.
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
        """How often each key counts for each query row, zero outside the support; slow and by definition."""

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
        weight = count.clamp(min=1).double().log() if (count > 1).any() else None
        return softmax_attention(q, k, v, count > 0, self.scale, rows=rows, log_weight=weight)

    def kept_mass(
        self,
        q: Float[Tensor, "B H N D"],
        k: Float[Tensor, "B G M D"],
        *,
        first: Int[Tensor, " B"] | None = None,
        rows: Int[Tensor, " R"] | None = None,
    ) -> Float[Tensor, "B H R"]:
        """Share of the target's softmax weight that lies inside the support of each query row, from 0 to 1."""
        inside = self.multiplicity(q, k, first=first, rows=rows) > 0
        keys = self.target_keys(q, k)
        pairs = self.target_pairs(q.shape[2], k.shape[2], first=first, rows=rows, device=q.device)
        group = self.heads // keys.shape[1]
        shares = []
        for head in range(self.heads):
            row = q[:, head] if rows is None else q[:, head, rows.to(q.device)]
            scores = row.double() @ keys[:, head // group].double().transpose(1, 2) * self.scale
            weights = torch.softmax(scores.masked_fill(~pairs[:, 0], -torch.inf), dim=-1)
            shares.append((weights * inside[:, head]).sum(-1))
        return torch.stack(shares, dim=1)

    def target_keys(
        self, q: Float[Tensor, "B H N D"], k: Float[Tensor, "B G M D"]
    ) -> Float[Tensor, "B heads_of_keys M D"]:
        """The keys that the target scores the queries with."""
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
        """The keys that the target allows each query row."""
        return causal_pairs(queries, keys, causal=self.causal, first=first, rows=rows, device=device)
