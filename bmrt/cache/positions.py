"""Rotary positions of kept keys: removed when a key is stored, and applied again at its current position.

A model rotates keys before caching them. To move a kept token, its key is unrotated once and stored that way; each
forward pass rotates it to its current position. Rotations are never chained, so rounding errors do not accumulate.
"""

from __future__ import annotations

import inspect
import sys
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

FIXED_KINDS = ("default", "linear", "llama3", "yarn")  # angles depend only on the position


class Rotary:
    """Applies a model's own rotary embedding to keys outside the model.

    Raises ValueError if that is impossible: no rotary embedding, one whose angles change with the length seen
    (dynamic, longrope), or one that does not pair the two halves of the dimensions.
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
            raise ValueError("positions='compact' is not possible if rotary embeddings differ between layers")
        self._require_halves(decoder)

    def rotate(self, x: Float[Tensor, "B G M D"], positions: Int[Tensor, "b M"]) -> Float[Tensor, "B G M D"]:
        """Rotate unrotated keys to these positions, as the model does."""
        cos, sin, width = self._at(x, positions)
        turned, rest = x[..., :width], x[..., width:]
        return torch.cat((turned * cos + _half_turned(turned) * sin, rest), dim=-1)

    def unrotate(self, x: Float[Tensor, "B G M D"], positions: Int[Tensor, "b M"]) -> Float[Tensor, "B G M D"]:
        """Invert `rotate`, including scaled (yarn) or rounded cosines and sines."""
        cos, sin, width = self._at(x, positions)
        turned, rest = x[..., :width], x[..., width:]
        base = (turned * cos - _half_turned(turned) * sin) / (cos.square() + sin.square())
        return torch.cat((base, rest), dim=-1)

    def _at(self, x: Tensor, positions: Tensor) -> tuple[Tensor, Tensor, int]:
        cos, sin = self._angles(x, positions)
        return cos.unsqueeze(1), sin.unsqueeze(1), cos.shape[-1]

    def _require_halves(self, decoder: nn.Module) -> None:
        """Compare with the model's own `apply_rotary_pos_emb` on random keys; raises ValueError if it is different."""
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
