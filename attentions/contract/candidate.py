"""What the contract tests: a class with settings, and how two outputs are compared.

Every axis has a different length, so that a wrong transposition does not go unnoticed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from attentions.base import Attention

B, G, H, D, E = 2, 3, 6, 11, 7
LENGTHS = ((1, 1), (63, 63), (500, 500), (67, 67), (1, 67), (13, 101))
EXACTLY = 1e-12  # relative rounding error of float64


# What `prepare` has learned, by class, device, dtype and sizes, because learning takes much longer than most checks.
_LEARNED: dict[tuple[type[Attention], str, torch.dtype, str], dict[str, Tensor]] = {}


class NotApplicable(Exception):  # noqa: N818 (it is not an error)
    """The check does not apply to this candidate; the message says why."""


@dataclass(frozen=True)
class Candidate:
    """A class and the settings to test it with; `causal` is one of them, True by default."""

    backend: type[Attention]
    settings: Mapping[str, Any] = field(default_factory=dict)
    device: str = "cpu"

    @property
    def causal(self) -> bool:
        """Whether later keys are hidden."""
        return self.settings.get("causal", True)

    def make(self, dtype: torch.dtype = torch.float64, **shape: Any) -> Attention:
        """Create an attention in eval mode, prepared on a calibration sample."""
        sizes: dict[str, Any] = (
            {"heads": H, "head_dim": D, "kv_heads": G, "value_dim": E, "max_len": 512} | dict(self.settings) | shape
        )
        attention = self.backend(**sizes).to(self.device, dtype)
        key = self.backend, self.device, dtype, repr(sorted(sizes.items()))
        if (learned := _LEARNED.get(key)) is not None:
            attention.load_state_dict(learned)
            return attention.eval()
        before = {name: tensor.clone() for name, tensor in attention.state_dict().items()}
        attention.prepare(*self.sample(attention, 256, 256, dtype=dtype, seed=99))
        after = {name: tensor.clone() for name, tensor in attention.state_dict().items()}
        if _can_be_loaded(before, after):
            _LEARNED[key] = after
        return attention.eval()

    def sample(
        self,
        attention: Attention,
        queries: int,
        keys: int,
        *,
        dtype: torch.dtype = torch.float64,
        seed: int = 0,
        grad: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gaussian q, k, v in the attention's sizes with batch B, equal on every device."""
        generator = torch.Generator().manual_seed(seed)
        a = attention
        shapes = (
            (B, a.heads, queries, a.head_dim),
            (B, a.kv_heads, keys, a.head_dim),
            (B, a.kv_heads, keys, a.value_dim),
        )
        drawn = (torch.randn(shape, dtype=torch.float64, generator=generator) for shape in shapes)
        q, k, v = (x.to(self.device, dtype).requires_grad_(grad) for x in drawn)
        return q, k, v


def _can_be_loaded(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> bool:
    """Return whether a new attention can load what was learned, which is false if it is kept elsewhere."""
    if {name: x.shape for name, x in before.items()} != {name: x.shape for name, x in after.items()}:
        return False
    return any(not torch.equal(x, before[name]) for name, x in after.items())


def agree(got: Tensor, want: Tensor, tolerance: float, what: str) -> None:
    """Assert that the difference of two tensors is at most `tolerance` times the norm of the wanted one."""
    assert got.shape == want.shape, f"{what}: shape {tuple(got.shape)} instead of {tuple(want.shape)}"
    assert torch.isfinite(got).all(), f"{what}: NaN or infinite values"
    error = ((got.double() - want.double()).norm() / want.double().norm().clamp(min=1e-3)).item()
    assert error <= tolerance, f"{what}: relative error {error:.2e} is above {tolerance:.0e}"
