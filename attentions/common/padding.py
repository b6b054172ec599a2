"""Left-padded batches for methods whose kernels do not support padding."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

if TYPE_CHECKING:
    from attentions.base import Attention


def by_row(
    attention: Attention,
    q: Float[Tensor, "B H N D"],
    k: Float[Tensor, "B G M D"],
    v: Float[Tensor, "B G M E"],
    first: Int[Tensor, " B"],
) -> Float[Tensor, "B H N E"]:
    """Run each left-padded row on its own without its padding; padded queries give zeros."""
    before = k.shape[2] - q.shape[2]
    rows = []
    for b, real in enumerate(first.tolist()):
        keys, start = slice(b, b + 1), max(real - before, 0)
        out = attention(q[keys, :, start:], k[keys, :, real:], v[keys, :, real:])
        rows.append(F.pad(out, (0, 0, start, 0)) if start else out)
    return torch.cat(rows)
