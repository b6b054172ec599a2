"""Angular locality-sensitive hashing whose codes can be sorted: neighbouring codes differ in one sign.

The Hamming-sorted LSH of HyperAttention, https://arxiv.org/abs/2310.05869.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

MOST_PROJECTIONS = 16


class AngularLSH(nn.Module):
    """Signs of `num_projs` random projections, one set for all heads, queries and keys.

    Raises ValueError for fewer than one projection or more than 16.
    """

    projections: Tensor
    code_of: Tensor

    def __init__(self, input_dim: int, num_projs: int = 7, *, seed: int = 0) -> None:
        super().__init__()
        if not 1 <= num_projs <= MOST_PROJECTIONS:
            raise ValueError(f"num_projs={num_projs!r} is not allowed: it must be from 1 to {MOST_PROJECTIONS}")
        drawn = torch.randn(num_projs, input_dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        self.register_buffer("projections", drawn.float(), persistent=False)
        self.register_buffer("code_of", torch.argsort(gray_order(num_projs)), persistent=False)

    @torch.no_grad()
    def forward(self, x: Float[Tensor, "B H N D"]) -> Int[Tensor, "B H N"]:
        """Code of each vector, from 0 to 2^num_projs - 1; a projection of zero counts as negative.

        Half precision is hashed in float32, so that a sign does not hang on the sum's rounding.
        """
        x = x if x.dtype == torch.float64 else x.float()
        signs = F.linear(x, self.projections.to(x.dtype)) > 0
        place = 2 ** torch.arange(signs.shape[-1], device=x.device)
        return self.code_of[(signs * place).sum(-1)]


def gray_order(bits: int) -> Int[Tensor, " codes"]:
    """All words of `bits` bits, each one bit away from the next (the reflected Gray sequence)."""
    word = torch.arange(2**bits)
    return word ^ (word >> 1)
