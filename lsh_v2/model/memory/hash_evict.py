"""HashEvict: keeps the tokens past the window whose hash codes are nearest to the codes of the queries.

Liu et al. 2024, HashEvict, https://arxiv.org/abs/2412.16187: keys and queries get short codes, the signs of Gaussian
projections, and the cached token with the largest Hamming distance to the current query is evicted. The paper evicts
one token per new token. Here eviction runs once at the end of each segment, by the distance summed over the segment's
queries; among tokens at equal distance, the older is evicted. Evicted tokens are passed on to the next memory.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lsh_v2.model.memory.base import Memory, Tokens, join


class HashEvict(Memory):
    """Holds at most `slots` tokens per key/value head, selected by codes of `bits` signs."""

    def __init__(self, kv_heads: int, key_dim: int, *, slots: int, bits: int, seed: int) -> None:
        super().__init__()
        self.capacity = slots
        draw = torch.Generator().manual_seed(seed)
        self.register_buffer("projection", torch.randn(kv_heads, key_dim, bits, generator=draw))

    projection: Tensor

    def absorb(
        self, state: Tokens | None, leaving: Tokens, q: Float[Tensor, "B H N D"]
    ) -> tuple[Tokens, Tokens | None]:
        held = join(state, leaving)
        if held.length <= self.capacity:
            return held, None
        distance = self.distances(q, held.k)
        # Newest first, so that a stable sort keeps the newer of two equally near tokens.
        nearest = (held.length - 1) - torch.sort(distance.flip(-1), dim=-1, stable=True).indices
        kept, gone = nearest.split((self.capacity, held.length - self.capacity), dim=-1)
        return held.pick(kept.sort(dim=-1).values), held.pick(gone.sort(dim=-1).values)

    def slots(self, state: Tokens | None) -> Tokens | None:
        return state

    def distances(self, q: Float[Tensor, "B H N D"], k: Float[Tensor, "B G T D"]) -> Int[Tensor, "B G T"]:
        """Return each key's Hamming distance to the codes of its group's queries, summed over the queries.

        Integer arithmetic makes the sum independent of the order of addition.
        """
        of_q = self.signs(q.unflatten(1, (k.shape[1], -1)).flatten(2, 3))
        queries, bits = of_q.shape[2], of_q.shape[3]
        agreement = (self.signs(k) * of_q.sum(2, keepdim=True)).sum(-1)
        return (queries * bits - agreement) // 2

    def signs(self, x: Float[Tensor, "B G T D"]) -> Int[Tensor, "B G T bits"]:
        """Return the code of each vector as +1 and -1."""
        with torch.no_grad():
            return torch.where(x @ self.projection.to(x.dtype) > 0, 1, -1)
