"""C++ kernels for the CPU, built on first use and cached; each has a torch fallback of equal result.

The libraries have a plain C interface and no dependency, so a build takes seconds and needs no headers of
torch. The compiler is `CXX`, else the first of c++, g++ and clang++ that there is; the cache is
`ATTENTION_BENCH_CACHE`, else `~/.cache/attention-bench`. A build that fails says why once, and callers use
their fallback.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import functools
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

FLAGS = ("-O3", "-march=native", "-std=c++17", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math")
LINK = ("-shared", "-fPIC", "-pthread")
BUILD_LIMIT_S = 180.0
LOCK_LIMIT_S = 240.0

log = logging.getLogger(__name__)


class BuildError(RuntimeError):
    """A native library could not be built; the message says why."""


@functools.cache
def library(name: str) -> ctypes.CDLL | None:
    """The library of `name`.cpp in this folder, or None where it cannot be built (the reason is logged once)."""
    try:
        return ctypes.CDLL(str(build(name)))
    except (BuildError, OSError) as error:
        log.warning("native kernel %s is not available, torch is used instead: %s", name, error)
        return None


def build_all() -> dict[str, bool]:
    """Build every library that is not cached yet, so that no measurement waits for a compiler; name -> success."""
    return {source.stem: library(source.stem) is not None for source in sorted(Path(__file__).parent.glob("*.cpp"))}


def build(name: str) -> Path:
    """Path of the built library, compiled unless the cache has it for this source, compiler and processor.

    Raises BuildError without a compiler, when compiling fails or when it takes too long. The lock is the
    kernel's own, so it ends with the process that holds it, however that ends.
    """
    source = Path(__file__).with_name(f"{name}.cpp")
    compiler = find_compiler()
    flags = [*FLAGS, *LINK]
    if platform.machine() == "arm64":  # Apple's clang
        flags.remove("-march=native")
    target = cache_folder() / f"{name}-{_digest(source, compiler, flags)}.so"
    if target.exists():
        return target
    with _lock(target.with_suffix(".lock")):
        if not target.exists():
            _compile([compiler, *flags, str(source)], target)
    return target


def find_compiler() -> str:
    """The C++ compiler that builds use; raises BuildError when there is none."""
    wanted = os.environ.get("CXX")
    names = [wanted] if wanted else ["c++", "g++", "clang++"]
    for name in names:
        if found := shutil.which(name):
            return found
    raise BuildError(f"no C++ compiler: {' and '.join(names)} not found")


def cache_folder() -> Path:
    """Where built libraries are kept, made if need be; raises BuildError where that is impossible."""
    folder = Path(os.environ.get("ATTENTION_BENCH_CACHE") or Path.home() / ".cache" / "attention-bench")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BuildError(f"the cache folder {folder} cannot be made: {error}") from error
    return folder


def _compile(command: list[str], target: Path) -> None:
    """Compile into a file of its own and move it into place, so that no one loads half a library."""
    handle, name = tempfile.mkstemp(suffix=".so", dir=target.parent)
    os.close(handle)
    try:
        done = subprocess.run(
            [*command, "-o", name], capture_output=True, text=True, timeout=BUILD_LIMIT_S, check=False
        )
        if done.returncode:
            raise BuildError(f"{command[0]} failed: {done.stderr.strip()[-500:]}")
        Path(name).replace(target)
    except subprocess.TimeoutExpired as error:
        raise BuildError(f"{command[0]} took over {BUILD_LIMIT_S:.0f} s") from error
    finally:
        Path(name).unlink(missing_ok=True)


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    deadline = time.monotonic() + LOCK_LIMIT_S
    with path.open("w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > deadline:
                    raise BuildError(f"another process has held {path} for over {LOCK_LIMIT_S:.0f} s") from error
                time.sleep(0.05)
        yield


def _digest(source: Path, compiler: str, flags: list[str]) -> str:
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False).stdout
    texts = [path.read_text(encoding="utf8") for path in (source, *sorted(source.parent.glob("*.hpp")))]
    parts = [*texts, version, " ".join(flags), platform.machine(), _processor()]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _processor() -> str:
    """What `-march=native` depends on."""
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return platform.processor()
    lines = info.read_text(encoding="utf8").splitlines()
    return "".join(sorted({line for line in lines if line.startswith(("flags", "Features", "model name"))}))
