"""What the contract does not see of flash: which implementation runs where, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from attentions import build
from attentions.base import Problem, problem_of


def problem(dtype: torch.dtype = torch.bfloat16, device: str = "cuda", head_dim: int = 64) -> Problem:
    attention = build("flash", heads=2, head_dim=head_dim)
    q = torch.empty(1, 2, 8, head_dim)
    return replace(problem_of(attention, q, q), dtype=dtype, device=torch.device(device))


@pytest.mark.parametrize(
    ("impl", "posed", "reason"),
    [
        ("flash-attn", problem(device="cpu"), "flash-attn"),
        ("auto", problem(dtype=torch.float32), "float16 and bfloat16 alone"),
        ("torch", problem(device="mps"), "no flash kernel for mps"),
        ("torch", problem(head_dim=320), "heads of up to 256"),
    ],
)
def test_what_no_kernel_takes_is_refused(impl: str, posed: Problem, reason: str) -> None:
    assert reason in build("flash", heads=2, head_dim=64, impl=impl).why_not(posed)


def test_half_precision_on_cuda_is_not_refused() -> None:
    assert build("flash", heads=2, head_dim=64, impl="torch").why_not(problem()) == ""


def test_unknown_implementation_is_a_clear_error() -> None:
    with pytest.raises(ValueError, match="impl='triton' is not allowed: it must be one of auto, torch, flash-attn"):
        build("flash", heads=2, head_dim=64, impl="triton")


def test_kernel_that_ran_is_named() -> None:
    attention = build("flash", heads=2, head_dim=16)
    attention(*(torch.randn(1, 2, 5, 16) for _ in range(3)))
    assert attention.kernel == "torch flash, CPU"
