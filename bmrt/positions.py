"""Rotary positions of what is kept: taken off a key as it comes in, put on again wherever it stands now.

A model rotates keys before it caches them. To move a kept token, its key is rotated back once and stored so; for each
forward pass it is rotated to its present place. Nothing is ever rotated twice in a row, so nothing drifts.
"""

from __future__ import annotations

import inspect
import sys
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

FIXED_KINDS = ("default", "linear", "llama3", "yarn")  # angles depend on the position alone


class Rotary:
    """A model's own rotary embedding, applied to keys outside of it.

    Raises ValueError where that is impossible: no rotary embedding, one whose angles change with the length seen
    (dynamic, longrope), and one that pairs dimensions in another way than halves.
    """

    def __init__(self, decoder: nn.Module) -> None:
        self._angles: Any = getattr(decoder, "rotary_emb", None)
        kind = getattr(self._angles, "rope_type", None)
        if not isinstance(kind, str) or kind not in FIXED_KINDS:
            raise ValueError(
                f"positions='compact' is not possible for {type(decoder).__name__} with rotary embedding {kind!r}: "
                f"it must be one of {', '.join(FIXED_KINDS)}, whose angles do not change with the length"
            )
        if "layer_type" in inspect.signature(self._angles.forward).parameters:
            raise ValueError("positions='compact' is not possible where rotary embeddings differ from layer to layer")
        self._require_halves(decoder)

    def rotate(self, x: Float[Tensor, "B G M D"], positions: Int[Tensor, "b M"]) -> Float[Tensor, "B G M D"]:
        """The model's own key at these positions for a key without any."""
        cos, sin, width = self._at(x, positions)
        turned, rest = x[..., :width], x[..., width:]
        return torch.cat((turned * cos + _half_turned(turned) * sin, rest), dim=-1)

    def unrotate(self, x: Float[Tensor, "B G M D"], positions: Int[Tensor, "b M"]) -> Float[Tensor, "B G M D"]:
        """The inverse of `rotate`, also for cosines and sines that were scaled (yarn) or rounded."""
        cos, sin, width = self._at(x, positions)
        turned, rest = x[..., :width], x[..., width:]
        base = (turned * cos - _half_turned(turned) * sin) / (cos.square() + sin.square())
        return torch.cat((base, rest), dim=-1)

    def _at(self, x: Tensor, positions: Tensor) -> tuple[Tensor, Tensor, int]:
        cos, sin = self._angles(x, positions)
        return cos.unsqueeze(1), sin.unsqueeze(1), cos.shape[-1]

    def _require_halves(self, decoder: nn.Module) -> None:
        """Compare with the model's own function on a drawn key; its file has one by this name if it rotates at all."""
        apply = getattr(sys.modules[type(decoder).__module__], "apply_rotary_pos_emb", None)
        positions = torch.arange(3, device=self._angles.inv_freq.device)[None]
        x = torch.randn(1, 1, 3, 2 * self._angles.inv_freq.numel(), generator=torch.Generator().manual_seed(0))
        x = x.to(positions.device)
        if apply is None or not torch.allclose(
            apply(x, x, *self._angles(x, positions))[1], self.rotate(x, positions), atol=1e-5
        ):
            name = type(decoder).__name__
            raise ValueError(f"positions='compact' is not possible for {name}: it does not rotate pairs of halves")


def _half_turned(x: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat((-second, first), dim=-1)
