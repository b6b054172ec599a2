"""The Triton scan: run by Triton's interpreter in a process of its own, compiled for a GPU that need not be there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from attentions.recurrent.definition import sequential
from attentions.recurrent.selective_scan import kernel_name
from attentions.recurrent.terms import Terms

pytest.importorskip("triton")

# Reads {case: (u, delta, a, b, c, state, upstream)} and writes {case: (out, last, gradients of the first five)}.
INTERPRET = """
import sys, torch
from attentions.recurrent import selective_scan
from attentions.native import selective_scan_triton as kernel
kernel.CHUNK, kernel.BLOCK = 8, 4  # the interpreter takes a quarter of a millisecond an element
selective_scan._kernel = lambda device: kernel
found = {}
for case, (*inputs, state, upstream) in torch.load(sys.argv[1]).items():
    leaves = [x.requires_grad_() for x in inputs]
    out, last = selective_scan.selective_scan(*leaves, state)
    found[case] = (out.detach(), last, torch.autograd.grad(out, leaves, upstream))
torch.save(found, sys.argv[2])
"""
COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from attentions.native import selective_scan_triton as kernel
for function in (kernel._forward, kernel._backward):
    constants = kernel._blocks() | ({"KEEP": True} if "KEEP" in function.arg_names else {})
    integers = {"kinds", "repeats", "keys", "past", "channels"}
    kinds = {n: "constexpr" if n in constants else "i32" if n in integers else "*fp32" for n in function.arg_names}
    target = GPUTarget("cuda", 80, 32)
    made = triton.compile(ASTSource(function, kinds, constants), target=target, options={"num_warps": 8})
    print(len(made.asm["cubin"]))
"""
CASES = {  # kinds, queries a key, queries, keys, channels, states, decay (None draws it), dtype
    "one key": (1, 1, 1, 1, 1, 1, None, torch.float64),
    "queries are the last keys": (2, 2, 11, 21, 6, 5, None, torch.float64),
    "more states than a kernel takes": (1, 1, 9, 9, 3, 18, None, torch.float64),
    "single precision": (1, 1, 13, 13, 4, 16, None, torch.float32),
    "slow decay": (1, 1, 17, 17, 4, 3, 1e-6, torch.float32),
    "immediate decay": (1, 1, 17, 17, 4, 3, 1e3, torch.float32),
}
Found = dict[str, tuple[Tensor, Tensor, tuple[Tensor, ...]]]


def inputs(case: str) -> list[Tensor]:
    """u, delta, a, b, c, a state and the gradient of the output."""
    kinds, repeats, queries, keys, channels, states, decay, dtype = CASES[case]
    draw = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw, dtype=dtype)

    u, delta = (normal(1, kinds, keys, channels) for _ in range(2))
    a, b = -normal(kinds, channels, states).exp(), normal(1, kinds, keys, states)
    if decay is not None:
        delta, a = torch.zeros_like(delta), torch.full_like(a, -decay)
    c, state = normal(1, kinds, repeats, queries, states), normal(1, kinds, channels, states)
    return [u, delta.exp(), a, b, c, state, normal(1, kinds, repeats, queries, channels)]


def run(script: str, *arguments: Path, **variables: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3]), **variables}
    command = [sys.executable, "-c", script, *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    folder = tmp_path_factory.mktemp("interpreted")
    torch.save({case: inputs(case) for case in CASES}, folder / "inputs")
    run(INTERPRET, folder / "inputs", folder / "found", TRITON_INTERPRET="1")
    return torch.load(folder / "found")


def definition(u: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """Output and last state of the recurrence from `state`, in float64."""
    u, delta, a, b, c, state = (x.double() for x in (u, delta, a, b, c, state))
    past, rows = b.shape[2] - c.shape[3], []
    for t in range(b.shape[2]):
        decay = (delta[:, :, t, :, None] * a).exp()
        state = decay * state + (delta * u)[:, :, t, :, None] * b[:, :, t, None, :]
        if t >= past:
            rows.append(torch.einsum("bgrs,bges->bgre", c[:, :, :, t - past], state))
    return torch.stack(rows, dim=3), state


@pytest.mark.parametrize("case", CASES)
def test_interpreted_kernel_is_the_sequential_recurrence(found: Found, case: str) -> None:
    *leaves, state, upstream = inputs(case)
    leaves = [x.requires_grad_() for x in leaves]
    out, last = definition(*leaves, state)
    grads = torch.autograd.grad(out, leaves, upstream.double())
    bound = 1e-12 if state.dtype == torch.float64 else 3e-6
    for got, want in zip([*found[case][:2], *found[case][2]], [out, last, *grads], strict=True):
        assert (got - want).norm() <= bound * max(1.0, want.norm().item())


def test_reference_of_this_test_is_the_oracle_of_the_scan() -> None:
    u, delta, a, b, c, state, _ = inputs("queries are the last keys")
    out, _ = definition(u, delta, a, b, c, torch.zeros_like(state))
    torch.testing.assert_close(out, sequential(Terms(c, b, u, delta, a)))


def test_kernels_compile_for_a_gpu(tmp_path: Path) -> None:
    sizes = run(COMPILE, TRITON_CACHE_DIR=str(tmp_path)).split()
    assert len(sizes) == 2
    assert all(int(size) > 1000 for size in sizes)


def test_kernel_of_a_gpu_is_triton() -> None:
    assert kernel_name(torch.device("cuda")) == "triton"
