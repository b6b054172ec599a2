"""A gated feed-forward layer computed in chunks of the sequence, so that its wide inner activations never all exist.

SwiGLU from Shazeer 2020, GLU variants, https://arxiv.org/abs/2002.05202; chunks as in Reformer, section 3.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class FeedForward(nn.Module):
    """down(silu(gate(x)) · up(x)), `chunk` positions at a time. Has 3·width·inner parameters and no bias."""

    def __init__(self, width: int, inner: int, *, chunk: int) -> None:
        super().__init__()
        self.gate_up = nn.Linear(width, 2 * inner, bias=False)
        self.down = nn.Linear(inner, width, bias=False)
        self.chunk = chunk

    def forward(self, x: Float[Tensor, "B N C"]) -> Float[Tensor, "B N C"]:
        if x.shape[1] <= self.chunk:
            return self._piece(x)
        if torch.is_grad_enabled():  # recompute a chunk's inner activations in the backward pass
            pieces = [checkpoint(self._piece, piece, use_reentrant=False) for piece in x.split(self.chunk, dim=1)]
            return torch.cat(pieces, dim=1)  # type: ignore[arg-type]
        return torch.cat([self._piece(piece) for piece in x.split(self.chunk, dim=1)], dim=1)

    def _piece(self, x: Float[Tensor, "B N C"]) -> Float[Tensor, "B N C"]:
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)
