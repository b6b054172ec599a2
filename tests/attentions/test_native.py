"""Builds of native kernels: cached, fallible, and never in each other's way."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from attentions import build as build_attention
from attentions import native

needs_compiler = pytest.mark.skipif(
    all(not Path(folder, "c++").exists() for folder in os.environ["PATH"].split(os.pathsep)), reason="no C++ compiler"
)


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("ATTENTION_BENCH_CACHE", str(tmp_path))
    native.library.cache_clear()
    yield tmp_path
    native.library.cache_clear()


@needs_compiler
def test_second_build_takes_the_cached_library(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = native.build("bucket_window")
    monkeypatch.setattr(native, "_compile", lambda command, target: pytest.fail("compiled again"))
    assert native.build("bucket_window") == first
    assert first.is_relative_to(empty_cache)


def test_missing_compiler_falls_back_and_says_why_once(
    empty_cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CXX", "/nonexistent")
    attention = build_attention("bit_sampling", heads=2, head_dim=16)
    inputs = [torch.randn(1, 2, 100, 16, dtype=torch.float64) for _ in range(3)]
    with caplog.at_level(logging.WARNING):
        out = attention(*inputs)
        attention(*inputs)
    assert attention.kernel == "torch fallback"
    assert [r.message for r in caplog.records if "/nonexistent not found" in r.message] == [caplog.records[0].message]
    torch.testing.assert_close(out, attention.naive(*inputs), rtol=1e-9, atol=1e-12)


@needs_compiler
def test_failing_compiler_is_a_build_error_with_its_message(
    empty_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = tmp_path / "broken-c++"
    compiler.write_text("#!/bin/sh\necho no licence today >&2\nexit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    with pytest.raises(native.BuildError, match="no licence today"):
        native.build("bucket_window")
    assert not list(empty_cache.glob("*.so"))


@needs_compiler
def test_killed_build_does_not_hang_the_next(empty_cache: Path, tmp_path: Path) -> None:
    slow = tmp_path / "slow-c++"
    slow.write_text('#!/bin/sh\ncase "$*" in *--version*) echo slow;; *) echo started > "$0.log"; sleep 60;; esac\n')
    slow.chmod(0o755)
    script = textwrap.dedent("""
        from attentions import native
        native.build("bucket_window")
    """)
    environment = {**os.environ, "CXX": str(slow), "PYTHONPATH": str(Path(__file__).parents[2])}
    child = subprocess.Popen([sys.executable, "-c", script], env=environment, start_new_session=True)
    deadline = time.monotonic() + 60
    while not Path(f"{slow}.log").exists():
        assert child.poll() is None, "the build ended by itself"
        assert time.monotonic() < deadline, "the build never started"
        time.sleep(0.02)
    os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    with native._lock(next(empty_cache.glob("*.lock"))):  # the lock went with the process that held it
        pass
    assert native.build("bucket_window").exists()
