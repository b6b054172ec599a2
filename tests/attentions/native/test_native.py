"""Builds of native kernels: cached, fallible, and never in each other's way."""

from __future__ import annotations

import hashlib
import logging
import os
import pwd
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from attentions import build as build_attention
from attentions import native

needs_compiler = pytest.mark.skipif(
    all(not Path(folder, "c++").exists() for folder in os.environ["PATH"].split(os.pathsep)), reason="no C++ compiler"
)


@pytest.fixture
def fresh() -> Iterator[None]:
    """A process that has loaded no library and said nothing yet."""
    native.library.cache_clear()
    native._say.cache_clear()
    yield
    native.library.cache_clear()
    native._say.cache_clear()


@pytest.fixture
def empty_cache(fresh: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ATTENTION_BENCH_CACHE", str(tmp_path))
    return tmp_path


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> str:
    """A library that is built in a second."""
    monkeypatch.setenv("ATTENTION_BENCH_CXXFLAGS", "-O0")
    return "short_convolution"


def script(path: Path, body: str) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


@needs_compiler
def test_second_build_takes_the_cached_library(empty_cache: Path, quick: str, monkeypatch: pytest.MonkeyPatch) -> None:
    first = native.build(quick)
    monkeypatch.setattr(native, "_compile", lambda command, target: pytest.fail("compiled again"))
    assert native.build(quick) == first
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
def test_killed_build_does_not_hang_the_next(empty_cache: Path, quick: str, tmp_path: Path) -> None:
    slow = tmp_path / "slow-c++"
    slow.write_text('#!/bin/sh\ncase "$*" in *--version*) echo slow;; *) echo started > "$0.log"; sleep 60;; esac\n')
    slow.chmod(0o755)
    script = f"from attentions import native; native.build({quick!r})"
    environment = {**os.environ, "CXX": str(slow), "PYTHONPATH": str(Path(__file__).parents[3])}
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
    assert native.build(quick).exists()


@needs_compiler
@pytest.mark.parametrize("form", ["argument", "launcher", "space in its path"])
def test_compiler_may_have_arguments_a_launcher_and_a_path_with_spaces(
    form: str, empty_cache: Path, quick: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "log"
    launcher = script(tmp_path / "launcher", f'echo "$@" >> {log}; exec "$@"')
    spaced = script(tmp_path / "my tools" / "cxx", f'echo "$@" >> {log}; exec c++ "$@"')
    command = {"argument": f"{launcher} c++ -DSOME=1", "launcher": f"{launcher} c++", "space in its path": str(spaced)}
    monkeypatch.setenv("CXX", command[form])
    assert native.library(quick) is not None
    assert f"{quick}.cpp" in log.read_text()
    assert ("-DSOME=1" in log.read_text()) == (form == "argument")


@pytest.mark.parametrize("wrong", ["'c++", "launcher-that-is-not-there c++"])
def test_compiler_that_cannot_be_understood_is_a_build_error(
    wrong: str, empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", wrong)
    with pytest.raises(native.BuildError, match=r"cannot be split into words|launcher-that-is-not-there not found"):
        native.build("bucket_window")


@needs_compiler
def test_libraries_of_other_flags_are_kept_apart(
    empty_cache: Path, quick: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = native.build(quick)
    monkeypatch.setenv("ATTENTION_BENCH_CXXFLAGS", "-O0 -DOTHER")
    assert native.build(quick) != first


def empty(content: bytes) -> bytes:
    return b""


def half(content: bytes) -> bytes:
    return content[: len(content) // 2]


def one_bit(content: bytes) -> bytes:
    return content[:-100] + bytes([content[-100] ^ 1]) + content[-99:]


@needs_compiler
@pytest.mark.parametrize("damage", [empty, half, one_bit])
def test_damaged_library_is_built_again_with_a_line(
    damage: Callable[[bytes], bytes], empty_cache: Path, quick: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = native.build(quick)
    whole = path.read_bytes()
    path.unlink()  # another file: the one that is loaded may not change
    path.write_bytes(damage(whole))
    with caplog.at_level(logging.WARNING):
        assert native.library(quick) is not None
    assert path.read_bytes() == whole
    assert [record.message for record in caplog.records] == [
        f"the native library {path} is damaged and will be rebuilt"
    ]


@needs_compiler
def test_library_of_another_architecture_is_built_again_with_a_line(
    empty_cache: Path, quick: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = native.build(quick)
    whole = path.read_bytes()
    other = whole[:18] + (0x1234).to_bytes(2, "little") + whole[20:]  # ELF's e_machine
    path.unlink()
    path.write_bytes(other)
    path.with_suffix(".sha256").write_text(hashlib.sha256(other).hexdigest())
    with caplog.at_level(logging.WARNING):
        assert native.library(quick) is not None
    assert path.read_bytes() == whole
    assert len(caplog.records) == 1
    assert "cannot be loaded and will be rebuilt" in caplog.text


@needs_compiler
@pytest.mark.parametrize("cause", ["no home", "a file in its place", "a folder that cannot be made"])
def test_cache_that_cannot_be_used_is_replaced_by_a_temporary_one_with_a_line(
    cause: str,
    fresh: None,
    quick: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def unknown(user: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {user}")

    (tmp_path / "file").touch()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.delenv("ATTENTION_BENCH_CACHE", raising=False)
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    if cause != "no home":
        places = {"a file in its place": tmp_path / "file", "a folder that cannot be made": "/proc/attention-bench"}
        monkeypatch.setenv("ATTENTION_BENCH_CACHE", str(places[cause]))
    with caplog.at_level(logging.WARNING):
        assert native.library(quick) is not None
    folder = tmp_path / f"attention-bench-{os.getuid()}"
    assert len(list(folder.glob("*.so"))) == 1
    assert folder.stat().st_mode & 0o077 == 0
    assert len(caplog.records) == 1
    assert f"native kernels are stored in {folder}" in caplog.text


def test_temporary_folder_that_others_can_write_is_not_used(
    fresh: None, quick: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / f"attention-bench-{os.getuid()}"
    folder.mkdir()
    folder.chmod(0o777)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("ATTENTION_BENCH_CACHE", "/proc/attention-bench")
    with caplog.at_level(logging.WARNING):
        assert native.library(quick) is None
    assert len(caplog.records) == 1
    assert "using torch instead" in caplog.text
    assert "other users can write to this folder" in caplog.text
    assert not list(folder.iterdir())
