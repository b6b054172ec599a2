"""Random calls in a process of their own: thousands against the definitions, and under sanitizers."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.attentions import broken, fuzz

ROOT = Path(__file__).parents[3]
SANITIZE = "-fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer -g -O1"


def run(seed: int, calls: int, *more: str, **environment: str) -> dict[str, Any]:
    """What the program found; a process that ended otherwise than by itself is a failure with its last call."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.attentions.fuzz", f"--seed={seed}", f"--calls={calls}", *more],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )
    assert done.returncode in (0, 1), f"exit {done.returncode} in the call before {done.stderr[-6000:]}"
    found = json.loads(done.stdout)
    print({name: x for name, x in found.items() if name != "mismatches"})
    assert not found["mismatches"], "\n".join(found["mismatches"][:20])
    return found


def test_random_calls_agree_with_the_definitions_or_are_refused() -> None:
    found = run(seed=1, calls=9 * len(fuzz.CLASSES))
    assert found["valid"] > 50
    assert min(found[kind] for kind in ("padded", "gradients", "streams", "refused", "layers")) > 0


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", range(100, 108))
def test_thousands_of_random_calls_agree_with_the_definitions_or_are_refused(seed: int) -> None:
    found = run(seed=seed, calls=20 * len(fuzz.CLASSES))
    assert found["valid"] > 130


@pytest.mark.no_type_checks
def test_wrong_answers_and_crashes_are_found(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(fuzz, "CLASSES", {"offset": broken.Offset, "trusting": broken.Trusting})
    for name in fuzz.CLASSES:
        assert fuzz.main(["--seed=1", "--calls=40", "--backends", name]) == 1
        assert json.loads(capsys.readouterr().out)["mismatches"]


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.skipif(platform.machine() != "x86_64" or shutil.which("g++") is None, reason="flags of g++ on x86-64")
@pytest.mark.parametrize("level", ["native", "x86-64", "x86-64-v3", "x86-64-v4"])
def test_kernels_are_clean_under_sanitizers(level: str, tmp_path: Path) -> None:
    """Every kernel for AVX-512, AVX2 and plain SSE, forward and backward; what the processor lacks is skipped."""
    flags = {"x86-64-v3": "avx2", "x86-64-v4": "avx512f"}
    if flags.get(level, "") not in Path("/proc/cpuinfo").read_text(encoding="utf8"):
        pytest.skip(f"the processor has no {flags[level]}")
    asan = subprocess.run(["g++", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True).stdout
    environment = {
        "CXX": "g++",
        "ATTENTION_BENCH_CXXFLAGS": f"-march={level} {SANITIZE}",
        "ATTENTION_BENCH_CACHE": str(tmp_path),
        "LD_PRELOAD": asan.strip(),
        "ASAN_OPTIONS": "detect_leaks=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }
    found = run(3, 24 * len(fuzz.CLASSES), **environment)
    assert all(found["native"].values()), found["native"]
