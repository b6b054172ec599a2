"""Global context: a selective scan over the whole past, added to the output through a gate per head.

The scan is Mamba's (`attentions.mamba`), with learnt projections. A gate is the tanh of a parameter initialised to
zero: before training the output is only the softmax estimate, but the gate has a gradient.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Unpack

import torch
from jaxtyping import Float
from torch import Tensor, nn

from attentions.mamba import Mamba

if TYPE_CHECKING:
    from attentions.common.settings import Shape


class GlobalContext(nn.Module):
    """`scan`, called with q, k and v, which runs in both directions if not causal, and one gate per query head."""

    def __init__(self, heads: int, head_dim: int, **shape: Unpack[Shape]) -> None:
        super().__init__()
        self.scan = Mamba(heads, head_dim, **shape)
        for name, weight in list(self.scan.named_buffers()):
            delattr(self.scan, name)
            self.scan.register_parameter(name, nn.Parameter(weight))
        self.gate = nn.Parameter(torch.zeros(heads))

    def gated(self, context: Float[Tensor, "B H N E"]) -> Float[Tensor, "B H N E"]:
        """Scale the scan's output by the gates; the result is added to the attention's output."""
        return context * self.gate.tanh().to(context.dtype)[:, None, None]
