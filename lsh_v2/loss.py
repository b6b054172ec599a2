"""Cross-entropy without the logits of the whole sequence: 131,072 positions × 32,000 words are 16.8 GB."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from attentions.recurrence_terms import at_least_float32

IGNORED = -100  # a label that is not counted, as everywhere in torch
CHUNK = 4096  # positions whose logits exist at once


def token_losses(
    states: Float[Tensor, "K C"], head: Float[Tensor, "V C"], labels: Int[Tensor, " K"]
) -> Float[Tensor, " K"]:
    """Negative log-likelihood of each label in nats; logits are made, and in the backward made again, by chunks."""
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
    """The mean, zero of nothing."""
    return values.sum() / max(values.numel(), 1)
