"""The gated feed-forward layer, over chunks of the sequence, so that its wide inner values never all exist.

Shazeer 2020, GLU variants (SwiGLU), https://arxiv.org/abs/2002.05202; chunks as in Reformer, section 3.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class FeedForward(nn.Module):
    """down(silu(gate(x)) · up(x)), `chunk` positions at a time; 3·width·inner parameters, no bias."""

    def __init__(self, width: int, inner: int, *, chunk: int) -> None:
        super().__init__()
        self.gate_up = nn.Linear(width, 2 * inner, bias=False)
        self.down = nn.Linear(inner, width, bias=False)
        self.chunk = chunk

    def forward(self, x: Float[Tensor, "B N C"]) -> Float[Tensor, "B N C"]:
        if x.shape[1] <= self.chunk:
            return self._piece(x)
        if torch.is_grad_enabled():  # the inner values of a chunk are computed again in its backward
            pieces = [checkpoint(self._piece, piece, use_reentrant=False) for piece in x.split(self.chunk, dim=1)]
            return torch.cat(pieces, dim=1)  # type: ignore[arg-type]
        return torch.cat([self._piece(piece) for piece in x.split(self.chunk, dim=1)], dim=1)

    def _piece(self, x: Float[Tensor, "B N C"]) -> Float[Tensor, "B N C"]:
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)
