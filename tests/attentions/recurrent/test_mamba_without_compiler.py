"""Without a C++ compiler everything about mamba and mamba2 works, and says that it does so in torch."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from attentions import BACKENDS, build, native
from attentions.contract.candidate import Candidate
from attentions.contract.checks import outcomes
from attentions.recurrent.mamba2_block import Mamba2Block
from attentions.recurrent.mamba_block import MambaBlock
from tests import preloaded

ROOT = Path(__file__).parents[3]


@pytest.fixture
def no_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No compiler, and no library that an earlier one built."""
    monkeypatch.setenv("CXX", "/nonexistent")
    monkeypatch.setenv("ATTENTION_BENCH_CACHE", str(tmp_path))
    native.library.cache_clear()
    yield
    native.library.cache_clear()


def test_report_of_a_sweep_without_a_compiler_says_torch_fallback(tmp_path: Path) -> None:
    out = tmp_path / "run"
    settings = {
        "backends": "[mamba, mamba2]",
        "lengths": "[64, 128]",
        "inputs": "gaussian",
        "rounds": "1",
        "also": "[]",
        "budget.total_s": "60",
    }
    chosen = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    environment = {**os.environ, "CXX": "/nonexistent", "ATTENTION_BENCH_CACHE": str(tmp_path / "cache")}
    command = ("-m", "harness.sweep", "conf.yml", "--out", str(out), *chosen)
    done = preloaded.run(*command, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stderr
    assert (done.stdout + done.stderr).count("native kernel selective_scan is not available") == 1
    rows = [json.loads(line) for line in (out / "rows.jsonl").read_text(encoding="utf8").splitlines()]
    assert {(row["backend"], row["n"], row["status"], row["kernel"]) for row in rows} == {
        (name, n, "ok", "torch fallback") for name in ("mamba", "mamba2") for n in (64, 128)
    }
    lines = (out / "report.md").read_text(encoding="utf8").splitlines()
    for name in ("mamba", "mamba2"):
        assert any(line.startswith(f"| {name} | {name} ") and "| torch fallback |" in line for line in lines)


@pytest.mark.usefixtures("no_compiler")
@pytest.mark.parametrize(("name", "library"), [("mamba", "selective_scan"), ("mamba2", "duality")])
def test_failed_build_says_why_once_and_goes_on(name: str, library: str, caplog: pytest.LogCaptureFixture) -> None:
    attention = build(name, heads=2, head_dim=16)
    inputs = [torch.randn(1, 2, 100, 16, dtype=torch.float64) for _ in range(3)]
    with caplog.at_level(logging.WARNING):
        out = attention(*inputs)
        attention(*inputs)
    assert attention.kernel == "torch fallback"
    assert len(caplog.messages) == 1
    assert library in caplog.messages[0]
    assert "/nonexistent not found" in caplog.messages[0]
    torch.testing.assert_close(out, attention.naive(*inputs), rtol=1e-9, atol=1e-12)


@pytest.mark.usefixtures("no_compiler")
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("name", ["mamba", "mamba2"])
def test_fallback_keeps_the_contract(name: str, causal: bool) -> None:
    found = outcomes(Candidate(BACKENDS[name], {"causal": causal}))
    assert {check: output for check, output in found.items() if output.startswith("FAILS")} == {}


@pytest.mark.usefixtures("no_compiler")
@pytest.mark.parametrize("block", [MambaBlock(12).double(), Mamba2Block(12, states=6).double()])
def test_blocks_without_a_compiler_equal_the_sequential_recurrence(block: MambaBlock | Mamba2Block) -> None:
    x = torch.randn(2, 70, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(block(x), block.naive(x), rtol=1e-10, atol=1e-12)
