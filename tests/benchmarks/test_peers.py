"""Attentions of other packages: a plain reason where a package is missing, and the gate where it is installed."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

from attentions import build
from attentions.common.problem import problem_of
from benchmarks import peers
from benchmarks.gated import gated, require_right
from tests.harness.conftest import grad_mode

__all__ = ["grad_mode"]
pytestmark = pytest.mark.usefixtures("grad_mode")

REFORMER, MAMBAPY = "benchmarks.peers:ReformerPytorch", "benchmarks.peers:Mambapy"


def needs(module: str) -> Any:
    return pytest.mark.skipif(importlib.util.find_spec(module) is None, reason=f"{module} is not installed")


def refusal(name: str, n: int = 256, **sizes: Any) -> str:
    attention = build(name, **{"heads": 2, "head_dim": 16} | sizes)
    q, k = torch.empty(1, attention.heads, n, 16), torch.empty(1, attention.kv_heads, n, 16)
    return attention.why_not(problem_of(attention, q, k))


@pytest.mark.parametrize(("name", "package"), [(REFORMER, "reformer-pytorch"), (MAMBAPY, "mambapy")])
def test_a_package_that_is_not_installed_is_the_reason(
    name: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers.importlib.util, "find_spec", lambda module: None)
    assert refusal(name) == f"{package} is not installed; pip install {package} adds it"


def test_what_reformer_pytorch_cannot_do_is_said_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers.importlib.util, "find_spec", lambda module: object())
    assert refusal(REFORMER) == ""
    assert "multiple of 128 tokens" in refusal(REFORMER, n=200)
    assert "as many key heads" in refusal(REFORMER, kv_heads=1)
    assert "one scale" in refusal(REFORMER, scale=1.0)


@needs("reformer_pytorch")
@pytest.mark.parametrize("n", [512, 1024])
def test_reformer_pytorch_passes_the_gate(tmp_path: Path, n: int) -> None:
    trial = gated(tmp_path, REFORMER, n, "forward")
    require_right(trial, trial.call(0))


@needs("mambapy")
def test_mambapy_agrees_with_the_definition_of_its_weights() -> None:
    block, x = build(MAMBAPY, heads=2, head_dim=16).block(32), torch.randn(2, 70, 32)
    rows = torch.tensor([0, 5, 69])
    torch.testing.assert_close(block(x)[:, rows].double(), block.naive(x, rows=rows), rtol=1e-4, atol=1e-6)
