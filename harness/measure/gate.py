"""The gate: checks that an answer must pass before it may be timed. Each returns "" or one plain sentence."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

# An answer above these multiples of the measured ceilings cannot have been computed in the time measured.
COMPUTE_MARGIN = 1.3
COPY_MARGIN = 3.0
COPY_BYTES = 64 * 2**20  # below this, caches may be faster than memory
LEAK_SLACK = 5.0  # times the method's tolerance, because two runs may round differently
GRADIENT_SLACK = 10.0  # the query gradient subtracts nearly equal terms, which costs about one digit


def not_finite(answer: Tensor) -> str:
    """Check that every number of an answer is finite."""
    if torch.isfinite(torch.stack(answer.aminmax())).all():  # propagates NaN, and reads the answer once
        return ""
    return f"{answer.numel() - int(torch.isfinite(answer).sum())} of {answer.numel()} numbers are not finite"


def relative_error(found: Tensor, expected: Tensor, least: float = 0.0) -> float:
    """Norm of the difference divided by the norm of `expected`, or by `least` if that is larger, in float64.

    Returns 0 if both tensors are zero, and 1 if `expected` and `least` are zero but `found` is not.
    """
    difference = torch.linalg.vector_norm(found.double() - expected.double()).item()
    size = max(torch.linalg.vector_norm(expected.double()).item(), least)
    return difference / size if size else float(difference > 0)


def least_gradient(terms: float, dtype: torch.dtype, tolerance: float) -> float:
    """Return the norm below which a gradient, a difference of terms of norm `terms`, is judged by its absolute error.

    At this norm, rounding the terms alone causes a relative error of `tolerance`, and a larger one the closer to zero
    they cancel. Without this floor a true gradient of zero would be missed by 100 % because of rounding. Above it
    nothing changes.
    """
    return terms * torch.finfo(dtype).eps / tolerance


def error_per_value(found: Tensor, expected: Tensor, values: Tensor) -> float:
    """Root mean square of the difference divided by that of the values that attention averages."""
    difference = (found.double() - expected.double()).square().mean().sqrt().item()
    size = torch.linalg.vector_norm(values, dtype=torch.float64).item() / values.numel() ** 0.5
    return difference / size if size else difference


def disagrees(error: float, allowed: float, whom: str) -> str:
    """Check that the error against `whom` is at most `allowed`."""
    return "" if error <= allowed else f"differs from {whom} by {error:.2g} (relative); the limit is {allowed:.2g}"


@dataclass(frozen=True)
class Leak:
    """A causality violation: how much outputs changed when only later tokens did, overall and at the worst row."""

    overall: float
    worst: float
    row: int


def leak(before: Float[Tensor, "*A N E"], after: Float[Tensor, "*A N E"]) -> Leak:
    """Relative change of outputs that should not have changed; each row is relative to the root mean square row."""
    change = torch.linalg.vector_norm(after - before, dim=-1, dtype=torch.float64).flatten(0, -2)
    size = torch.linalg.vector_norm(before, dim=-1, dtype=torch.float64)
    typical = size.square().mean().sqrt().item() or 1.0
    overall = change.square().mean().sqrt().item() / typical
    by_row = change.amax(0)
    row = int(by_row.argmax())
    return Leak(overall, by_row[row].item() / typical, row)


def leaks(found: Leak, tolerance: float) -> str:
    """Check that a strictly causal method changes no output when only later tokens change."""
    if found.worst <= LEAK_SLACK * tolerance:
        return ""
    return f"row {found.row} changes by {found.worst:.2g} (relative) when only later tokens change"


@dataclass(frozen=True)
class Ceilings:
    """This machine's measured peak rates; 0 if not measured."""

    flops_per_s: float
    copy_bytes_per_s: float

    def least_s(self, flops: float, moved_bytes: float) -> float:
        """The roofline: the least time that arithmetic and memory traffic need; 0 if unknown."""
        compute = flops / self.flops_per_s if self.flops_per_s else 0.0
        copy = moved_bytes / self.copy_bytes_per_s if self.copy_bytes_per_s else 0.0
        return max(compute, copy)


def too_fast(time_s: float, flops: float, moved_bytes: float, ceilings: Ceilings) -> str:
    """Check that no time is below what the measured ceilings allow, with a margin for their own error."""
    if ceilings.flops_per_s and flops / time_s > COMPUTE_MARGIN * ceilings.flops_per_s:
        done, most = flops / time_s / 1e9, ceilings.flops_per_s / 1e9
        return f"faster than the hardware: {done:.3g} GFLOP/s, but the measured maximum is {most:.3g}"
    if moved_bytes > COPY_BYTES and ceilings.copy_bytes_per_s:
        done, most = moved_bytes / time_s / 1e9, ceilings.copy_bytes_per_s / 1e9
        if done > COPY_MARGIN * most:
            return f"faster than the hardware: {done:.3g} GB/s, but the measured maximum is {most:.3g}"
    return ""
