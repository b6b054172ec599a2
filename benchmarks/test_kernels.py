"""pytest-benchmark cases: `pytest benchmarks --benchmark-only`. Nothing here asserts a time.

What is timed has passed the gate of the harness before, and its last answer is checked again.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from attentions import BACKENDS
from benchmarks.gated import gated, require_right


@pytest.fixture(autouse=True)
def grad_mode() -> Iterator[None]:
    """A trial decides for the whole process whether gradients are recorded; undo that."""
    before = torch.is_grad_enabled()
    yield
    torch.set_grad_enabled(before)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of inputs, which all backends share."""
    return tmp_path_factory.mktemp("store")


@pytest.mark.parametrize("n", [1024, 4096])
@pytest.mark.parametrize("name", BACKENDS)
def test_forward(benchmark: BenchmarkFixture, store: Path, name: str, n: int) -> None:
    trial = gated(store, name, n, "forward")
    require_right(trial, benchmark(trial.call, 0))


@pytest.mark.parametrize("name", BACKENDS)
def test_forward_and_backward(benchmark: BenchmarkFixture, store: Path, name: str) -> None:
    trial = gated(store, name, 1024, "train")
    require_right(trial, benchmark(trial.call, 0))


@pytest.mark.parametrize("n", [1024, 4096])
def test_decoding_one_token(benchmark: BenchmarkFixture, store: Path, n: int) -> None:
    trial = gated(store, "bit_sampling", n, "decode")

    def rewound() -> None:
        trial.rewind()

    require_right(trial, benchmark.pedantic(trial.call, args=(0,), setup=rewound, rounds=200))
