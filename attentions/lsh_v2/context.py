"""Global context: a selective scan over the whole past, gated into the output by each head.

The scan is Mamba's (`attentions.mamba`), here with projections that are learnt. A gate is tanh of a number that
starts at zero: closed, so that before training the output is the softmax estimate alone, yet with a gradient.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from attentions.mamba import Mamba


class GlobalContext(nn.Module):
    """`scan`, to be called with q, k and v, which runs both ways where not causal, and the gate of each query head."""

    def __init__(self, heads: int, head_dim: int, **shape: Any) -> None:
        super().__init__()
        self.scan = Mamba(heads, head_dim, **shape)
        for name, weight in list(self.scan.named_buffers()):
            delattr(self.scan, name)
            self.scan.register_parameter(name, nn.Parameter(weight))
        self.gate = nn.Parameter(torch.zeros(heads))

    def gated(self, context: Float[Tensor, "B H N E"]) -> Float[Tensor, "B H N E"]:
        """What a scan's output adds to the attention's."""
        return context * self.gate.tanh().to(context.dtype)[:, None, None]
