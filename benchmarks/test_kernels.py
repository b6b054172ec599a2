"""pytest-benchmark cases: `pytest benchmarks --benchmark-only`. Nothing here asserts a time."""

from __future__ import annotations

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from attentions import BACKENDS, build
from benchmarks.side_by_side import forward_and_backward, gaussian

HEADS, DIM = 4, 64


@pytest.mark.parametrize("n", [1024, 4096])
@pytest.mark.parametrize("name", BACKENDS)
def test_forward(benchmark: BenchmarkFixture, name: str, n: int) -> None:
    attention, inputs = build(name, heads=HEADS, head_dim=DIM, max_len=n).eval(), gaussian(n)
    with torch.no_grad():
        out = benchmark(attention, *inputs)
    assert torch.isfinite(out).all()


@pytest.mark.parametrize("name", BACKENDS)
def test_forward_and_backward(benchmark: BenchmarkFixture, name: str) -> None:
    attention, inputs = build(name, heads=HEADS, head_dim=DIM, max_len=1024), gaussian(1024)
    grads = benchmark(forward_and_backward(attention, inputs))
    assert torch.isfinite(grads[0]).all()


@pytest.mark.parametrize("n", [1024, 4096])
def test_decoding_one_token(benchmark: BenchmarkFixture, n: int) -> None:
    attention = build("bit_sampling", heads=HEADS, head_dim=DIM)
    stream = attention.stream(1)
    assert stream is not None
    q, k, v = gaussian(n + 1)
    stream.extend(q[:, :, :n], k[:, :, :n], v[:, :, :n])
    out = benchmark(stream.extend, q[:, :, n:], k[:, :, n:], v[:, :, n:])
    assert torch.isfinite(out).all()
