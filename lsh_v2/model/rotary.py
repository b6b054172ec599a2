"""Rotary position embeddings that can start at any position, for whole sequences and for decoding.

Su et al. 2021, RoFormer, https://arxiv.org/abs/2104.09864, equation 34; halves are paired as in GPT-NeoX.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor


class Rotation(NamedTuple):
    """Cosine and sine of each position's angles, one per pair of coordinates."""

    cos: Float[Tensor, "*B N P"]
    sin: Float[Tensor, "*B N P"]


def rotation(
    start: int, count: int, width: int, base: float, *, device: torch.device, dtype: torch.dtype = torch.float32
) -> Rotation:
    """Return the angles of positions start to start + count - 1 for an even `width`, computed in float64."""
    frequency = base ** (-torch.arange(width // 2, device=device, dtype=torch.float64) / max(width // 2, 1))
    angle = torch.arange(start, start + count, device=device, dtype=torch.float64)[:, None] * frequency
    return Rotation(angle.cos().to(dtype), angle.sin().to(dtype))


def shifted(by: Rotation, first: Int[Tensor, " B"]) -> Rotation:
    """Return per-row angles (B, 1, N, P) with `first` as position 0; earlier positions are clamped to 0."""
    place = torch.arange(by.cos.shape[0], device=by.cos.device) - first[:, None].to(by.cos.device)
    return Rotation(*(angle[place.clamp(min=0)].unsqueeze(1) for angle in by))


def rotate(x: Float[Tensor, "B H N D"], by: Rotation) -> Float[Tensor, "B H N D"]:
    """Rotate each pair of coordinates (i, i + D/2) of x by its position's angle."""
    a, b = x.chunk(2, dim=-1)
    cos, sin = by.cos.to(x.dtype), by.sin.to(x.dtype)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)
