"""What makes an answer wrong. Each check returns an empty string or one plain sentence."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

# Above these multiples of the measured ceilings no answer was computed in the time that it claims.
COMPUTE_MARGIN = 1.3
COPY_MARGIN = 3.0
COPY_BYTES = 64 * 2**20  # below that, caches may be faster than memory
LEAK_SLACK = 5.0  # two runs may round differently; times the method's tolerance
GRADIENT_SLACK = 10.0  # the query gradient subtracts nearly equal terms, which costs about a digit


def not_finite(answer: Tensor) -> str:
    """Every number of an answer must be finite."""
    if torch.isfinite(torch.stack(answer.aminmax())).all():  # passes NaN on, and reads the answer once
        return ""
    return f"{answer.numel() - int(torch.isfinite(answer).sum())} of {answer.numel()} numbers are not finite"


def relative_error(found: Tensor, expected: Tensor, least: float = 0.0) -> float:
    """Norm of the difference over the norm of what is expected, or over `least` where that is more, in float64.

    0 where both tensors are zero, and 1 where nothing is expected and `least` is 0.
    """
    difference = torch.linalg.vector_norm(found.double() - expected.double()).item()
    size = max(torch.linalg.vector_norm(expected.double()).item(), least)
    return difference / size if size else float(difference > 0)


def least_gradient(terms: float, dtype: torch.dtype, tolerance: float) -> float:
    """The norm below which a gradient that is a difference of terms of norm `terms` is judged by its absolute error.

    Rounding the terms alone then makes an error of `tolerance`, and a larger one the nearer to zero they cancel: a true
    gradient of zero is not missed by 100 % because the terms are rounded. Above it nothing changes.
    """
    return terms * torch.finfo(dtype).eps / tolerance


def error_per_value(found: Tensor, expected: Tensor, values: Tensor) -> float:
    """Root mean square of the difference over that of the values that attention averages."""
    difference = (found.double() - expected.double()).square().mean().sqrt().item()
    size = torch.linalg.vector_norm(values, dtype=torch.float64).item() / values.numel() ** 0.5
    return difference / size if size else difference


def disagrees(error: float, allowed: float, whom: str) -> str:
    """An error against `whom` must be at most `allowed`."""
    return "" if error <= allowed else f"differs from {whom} by {error:.2g} (relative), allowed is {allowed:.2g}"


@dataclass(frozen=True)
class Leak:
    """How outputs changed when only later tokens did: overall, and at the row that changed most."""

    overall: float
    worst: float
    row: int


def leak(before: Float[Tensor, "*A N E"], after: Float[Tensor, "*A N E"]) -> Leak:
    """Relative change of outputs that should not have changed; a row is measured by the root mean square row."""
    change = torch.linalg.vector_norm(after - before, dim=-1, dtype=torch.float64).flatten(0, -2)
    size = torch.linalg.vector_norm(before, dim=-1, dtype=torch.float64)
    typical = size.square().mean().sqrt().item() or 1.0
    overall = change.square().mean().sqrt().item() / typical
    by_row = change.amax(0)
    row = int(by_row.argmax())
    return Leak(overall, by_row[row].item() / typical, row)


def leaks(found: Leak, tolerance: float) -> str:
    """A strictly causal method changes no output when only later tokens change."""
    if found.worst <= LEAK_SLACK * tolerance:
        return ""
    return f"row {found.row} changes by {found.worst:.2g} (relative) when only later tokens change"


@dataclass(frozen=True)
class Ceilings:
    """What this machine was measured to reach; 0 where it was not measured."""

    flops_per_s: float
    copy_bytes_per_s: float

    def least_s(self, flops: float, moved_bytes: float) -> float:
        """The roofline: the least time that the arithmetic and the traffic need; 0 where unknown."""
        compute = flops / self.flops_per_s if self.flops_per_s else 0.0
        copy = moved_bytes / self.copy_bytes_per_s if self.copy_bytes_per_s else 0.0
        return max(compute, copy)


def too_fast(time_s: float, flops: float, moved_bytes: float, ceilings: Ceilings) -> str:
    """No time may be below what the hardware's measured ceilings allow, with a margin for their own error."""
    if ceilings.flops_per_s and flops / time_s > COMPUTE_MARGIN * ceilings.flops_per_s:
        done, most = flops / time_s / 1e9, ceilings.flops_per_s / 1e9
        return f"faster than the hardware: {done:.3g} GFLOP/s where {most:.3g} were measured"
    if moved_bytes > COPY_BYTES and ceilings.copy_bytes_per_s:
        done, most = moved_bytes / time_s / 1e9, ceilings.copy_bytes_per_s / 1e9
        if done > COPY_MARGIN * most:
            return f"faster than the hardware: {done:.3g} GB/s where {most:.3g} were measured"
    return ""
