"""What the contract does not see of flash: which implementation runs where, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from attentions import build
from attentions.common.problem import Problem, problem_of
from harness.measure.memory import allocator_peak


def problem(dtype: torch.dtype = torch.bfloat16, device: str = "cuda", head_dim: int = 64) -> Problem:
    attention = build("flash", heads=2, head_dim=head_dim)
    q = torch.empty(1, 2, 8, head_dim)
    return replace(problem_of(attention, q, q), dtype=dtype, device=torch.device(device))


@pytest.mark.parametrize(
    ("impl", "posed", "reason"),
    [
        ("flash-attn", problem(device="cpu"), "flash-attn"),
        ("auto", problem(dtype=torch.float32), "only float16 and bfloat16"),
        ("torch", problem(device="mps"), "no flash kernel for mps"),
        ("torch", problem(head_dim=320), "head dimensions up to 256"),
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


@pytest.mark.parametrize(
    ("shape", "outputs"),
    [
        ({}, 0.1),
        ({"kv_heads": 1}, 0.1),
        ({"causal": False}, 0.1),
        ({"queries": 256}, 1.2),  # the output of the keys before the queries
        ({"queries": 256, "kv_heads": 1}, 1.2),
        ({"queries": 1, "kv_heads": 1}, 0.1),
    ],
    ids=str,
)
def test_memory_is_that_of_the_kernel_without_copies_of_the_inputs(shape: dict[str, Any], outputs: float) -> None:
    sizes = {"heads": 4, "head_dim": 64} | {k: x for k, x in shape.items() if k != "queries"}
    attention, queries = build("flash", **sizes), shape.get("queries", 1024)
    q, k, v = (torch.randn(1, h, n, 64) for h, n in ((4, queries), *[(attention.kv_heads, 1024)] * 2))

    def kernel() -> torch.Tensor:
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v)[0]

    with torch.no_grad():
        (out, least), (_, found) = allocator_peak(kernel), allocator_peak(lambda: attention(q, k, v))
    assert found <= least + outputs * out.numel() * out.itemsize + 2**12


@pytest.mark.parametrize("queries", [1024, 256])
def test_gradients_share_the_inputs_too(queries: int) -> None:
    attention = build("flash", heads=4, head_dim=64)
    inputs = [torch.randn(1, 4, n, 64, requires_grad=True) for n in (queries, 1024, 1024)]
    out = attention(*inputs)
    saved = {x.untyped_storage().data_ptr() for x in saved_by(out)}
    assert {x.untyped_storage().data_ptr() for x in inputs} <= saved


def saved_by(out: torch.Tensor) -> list[torch.Tensor]:
    """What the function that made `out` keeps for its backward pass."""
    node: Any = out.grad_fn
    while node is not None:
        kept = getattr(node, "saved_tensors", None) or [
            getattr(node, name) for name in dir(node) if name.startswith("_saved_")
        ]
        tensors = [x for x in kept if isinstance(x, torch.Tensor)]
        if len(tensors) > 2:
            return tensors
        node = node.next_functions[0][0]
    return []
