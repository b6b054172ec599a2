"""Angular locality-sensitive hashing with sortable codes: neighbouring codes differ in one sign.

The Hamming-sorted LSH of HyperAttention, https://arxiv.org/abs/2310.05869.
"""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from hyper_attn.state import Drawn

MOST_PROJECTIONS = 16
PIECE = 512  # vectors per head held in float64 at once, so that they stay in cache


class AngularLSH(Drawn):
    """Signs of `num_projs` random projections, shared by all heads, queries and keys.

    The projections are part of the state and are not rounded when the module is converted. Raises ValueError for fewer
    than one projection or more than 16.
    """

    added: ClassVar[tuple[str, ...]] = ("projections",)

    projections: Tensor
    code_of: Tensor

    def __init__(self, input_dim: int, num_projs: int = 7, *, seed: int = 0) -> None:
        super().__init__()
        if not 1 <= num_projs <= MOST_PROJECTIONS:
            raise ValueError(f"num_projs={num_projs!r} is not allowed: it must be from 1 to {MOST_PROJECTIONS}")
        drawn = torch.randn(num_projs, input_dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        self.register_buffer("projections", drawn.float())
        self.register_buffer("code_of", torch.argsort(gray_order(num_projs)), persistent=False)

    @torch.no_grad()
    def forward(self, x: Float[Tensor, "B H N D"]) -> Int[Tensor, "B H N"]:
        """Return the code of each vector, from 0 to 2^num_projs - 1; a projection of zero counts as negative.

        Products are in float64, which neither autocast nor reduced float32 precision affects.
        """
        return torch.cat([self._codes(piece.double()) for piece in x.split(PIECE, dim=2)], dim=2)

    def _codes(self, x: Float[Tensor, "B H T D"]) -> Int[Tensor, "B H T"]:
        signs = F.linear(x, self.projections.double()) > 0
        place = 2 ** torch.arange(signs.shape[-1], device=x.device)
        return self.code_of[(signs * place).sum(-1)]


def gray_order(bits: int) -> Int[Tensor, " codes"]:
    """All words of `bits` bits, each one bit away from the next (the reflected Gray sequence)."""
    word = torch.arange(2**bits)
    return word ^ (word >> 1)
