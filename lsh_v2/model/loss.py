"""Cross-entropy without full-sequence logits, which would be 16.8 GB for 131,072 positions × 32,000 words."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from attentions.recurrent.terms import at_least_float32

IGNORED = -100  # label to ignore, as elsewhere in torch
CHUNK = 4096  # positions whose logits are held in memory at once


def token_losses(
    states: Float[Tensor, "K C"], head: Float[Tensor, "V C"], labels: Int[Tensor, " K"]
) -> Float[Tensor, " K"]:
    """Return each label's negative log-likelihood in nats; logits are computed, and recomputed, chunk by chunk."""
    pieces = zip(states.split(CHUNK), labels.split(CHUNK), strict=True)
    if torch.is_grad_enabled() and len(states) > CHUNK:
        losses = [checkpoint(_piece, x, head, y, use_reentrant=False) for x, y in pieces]
    else:
        losses = [_piece(x, head, y) for x, y in pieces]
    return torch.cat(losses)  # type: ignore[arg-type]


def _piece(states: Tensor, head: Tensor, labels: Tensor) -> Tensor:
    logits = F.linear(states, head)
    return F.cross_entropy(logits.to(at_least_float32(logits.dtype)), labels, reduction="none")


def mean(values: Float[Tensor, " K"]) -> Float[Tensor, ""]:
    """Return the mean, or zero if there are no values."""
    return values.sum() / max(values.numel(), 1)
