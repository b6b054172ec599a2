"""Learned hash functions: a projection and two rotations per round; the largest coordinates are the bucket.

    z = x·P / |x·P|   z' = x·P' / |x·P'|        code = (argmax [z·R; -z·R], argmax [z'·R'; -z'·R'])

P and P' (D, hash_dim) are shared by the queries and keys of a key/value head. They start equal; after training, the two
halves of a code can use different directions of x, 2·hash_dim of them instead of hash_dim. The two rotations start
orthogonal and differ per round. One rotation gives 2·hash_dim buckets, the pair (2·hash_dim)². Codes do not need the
normalisation, since it does not change which coordinate is largest, but the soft assignment used in training does.
Rotational hashing follows Andoni et al. 2015, "Practical and optimal LSH for angular distance",
https://arxiv.org/abs/1509.02897.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from transformer_vq.precision import Selector, exact_products, in_own_dtype

PIECE = 4096  # positions hashed at once, so that their coordinates stay in cache
FEW = 16  # up to this many vectors per head, torch's argmax is faster than a dozen launches


class LearnedHash(Selector):
    """`rounds` functions for each of `kv_heads` heads, with codes in [0, (2·hash_dim)²)."""

    def __init__(self, kv_heads: int, head_dim: int, *, rounds: int, hash_dim: int, seed: int) -> None:
        super().__init__()
        self.rounds, self.hash_dim = rounds, hash_dim
        self.buckets = 2 * hash_dim  # per rotation
        draw = torch.Generator().manual_seed(seed)
        like = {"generator": draw, "dtype": torch.float32}
        projections = torch.randn(kv_heads, rounds, 1, head_dim, hash_dim, **like) * head_dim**-0.5
        rotations = torch.randn(kv_heads, rounds, 2, hash_dim, hash_dim, **like)
        self.projections = nn.Parameter(projections.repeat(1, 1, 2, 1, 1))  # (G, rounds, rotations, D, hash_dim)
        self.rotations = nn.Parameter(torch.linalg.qr(rotations)[0])

    def forward(
        self, x: Float[Tensor, "B heads N D"], kv_heads: slice = slice(None)
    ) -> Int[Tensor, "rounds B heads N"]:
        """Codes of vectors in the heads of these key/value heads, one or several each."""
        with torch.no_grad(), exact_products(x.device):
            return torch.cat([self._codes(piece, kv_heads) for piece in x.split(PIECE, dim=2)], dim=3)

    def coarse(self, codes: Int[Tensor, "rounds X L"]) -> Int[Tensor, "X L"]:
        """The first round's first rotation only: 2·hash_dim buckets, the strata of dissimilarity sampling."""
        return codes[0] // self.buckets

    @in_own_dtype
    def soft(
        self, x: Float[Tensor, "B heads N D"], temperature: float
    ) -> Float[Tensor, "B G Q rounds rotations buckets"]:
        """Probability of each bucket, differentiable in the functions; Q counts the queries of all heads."""
        z = torch.einsum(
            "bgqd,grtdh->bgqrth", self._grouped(x, slice(None)).flatten(2, 3), self.projections.to(x.dtype)
        )
        z = torch.einsum("bgqrth,grthk->bgqrtk", nn.functional.normalize(z, dim=-1), self.rotations.to(x.dtype))
        z = z / temperature
        return torch.cat((z, -z), dim=-1).softmax(-1)

    def _codes(self, x: Tensor, kv_heads: slice) -> Tensor:
        first, second = self._largest(self._rotated(x, kv_heads)).unbind(3)  # (B, G, rounds, Q)
        return (first * self.buckets + second).movedim(2, 0).reshape(self.rounds, *x.shape[:3])

    def _rotated(self, x: Tensor, kv_heads: slice) -> Tensor:
        """Rotated coordinates (B, G, rounds, 2, hash_dim, Q), not normalised."""
        wide = x.dtype if x.dtype == torch.float64 else torch.float32
        maps = self.projections[kv_heads].to(wide) @ self.rotations[kv_heads].to(wide)
        maps = maps.mT.flatten(1, 3)  # (G, rounds·2·hash_dim, D)
        y = maps @ self._grouped(x.detach().to(wide), kv_heads).flatten(2, 3).mT
        return y.unflatten(2, (self.rounds, 2, self.hash_dim))

    def _grouped(self, x: Tensor, kv_heads: slice) -> Tensor:
        G = len(self.projections[kv_heads])
        return x.unflatten(1, (G, x.shape[1] // G))

    def _largest(self, y: Tensor) -> Tensor:
        """argmax [y; -y] over the axis before the last, the first on ties; for many columns much faster than argmax."""
        if y.shape[-1] <= FEW:
            best = y.abs().argmax(-2, keepdim=True)
            return ((y.gather(-2, best) < 0) * self.hash_dim + best).squeeze(-2)
        best, code = torch.full_like(y[..., 0, :], -1.0), torch.zeros_like(y[..., 0, :], dtype=torch.uint8)
        for i, one in enumerate(y.unbind(-2)):
            size = one.abs()
            code = torch.where(size > best, (one < 0).to(torch.uint8) * self.hash_dim + i, code)
            best = torch.maximum(best, size)
        return code.long()
