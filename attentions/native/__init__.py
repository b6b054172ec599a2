"""C++ kernels for the CPU, built on first use and cached; each has a torch fallback of equal result.

The libraries have a plain C interface and no dependency, so a build takes seconds and needs no headers of torch. What
the environment may set:

    CXX                        the compiler, with arguments or a launcher if need be ("ccache g++ -m64"); without it the
                               first of c++, g++ and clang++ that there is
    ATTENTION_BENCH_CXXFLAGS   flags to add to the build's own ("-march=x86-64-v3", "-fsanitize=address"); libraries
                               built with other flags are kept apart
    ATTENTION_BENCH_CACHE      where libraries are kept; without it ~/.cache/attention-bench

Where that folder cannot be written, libraries are built in one of the user's own below the temporary folder. A cached
library that is damaged is built again. A build that fails says why once, and callers use their fallback.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import functools
import hashlib
import logging
import os
import platform
import shlex
import shutil
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

FLAGS = ("-O3", "-march=native", "-std=c++17", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math")
LINK = ("-shared", "-fPIC", "-pthread")
BUILD_LIMIT_S = 180.0
LOCK_LIMIT_S = 240.0
VERSION_LIMIT_S = 30.0

log = logging.getLogger(__name__)


class BuildError(RuntimeError):
    """A native library could not be built; the message says why."""


@functools.cache
def library(name: str) -> ctypes.CDLL | None:
    """The library of `name`.cpp in this folder, or None where it cannot be built (the reason is logged once)."""
    try:
        path = build(name)
        try:
            return ctypes.CDLL(str(path))
        except OSError as error:  # whole, but of another kind of machine
            _say(f"the native library {path} cannot be loaded and is built again: {error}")
            _checksum(path).unlink(missing_ok=True)
            return ctypes.CDLL(str(build(name)))
    except (BuildError, OSError) as error:
        log.warning("native kernel %s is not available, torch is used instead: %s", name, error)
        return None


def build_all() -> dict[str, bool]:
    """Build every library that is not cached yet, so that no measurement waits for a compiler; name -> success."""
    return {source.stem: library(source.stem) is not None for source in sorted(Path(__file__).parent.glob("*.cpp"))}


def build(name: str) -> Path:
    """Path of the built library, compiled unless the cache has it whole for this source, compiler and processor.

    Raises BuildError without a compiler, when compiling fails or takes too long, and where no folder can be written.
    """
    source, compiler = Path(__file__).with_name(f"{name}.cpp"), find_compiler()
    flags = [*FLAGS, *LINK]
    if platform.machine() == "arm64":  # Apple's clang
        flags.remove("-march=native")
    flags += _split("ATTENTION_BENCH_CXXFLAGS")
    file = f"{name}-{_digest(source, compiler, flags)}.so"
    reasons = []
    for folder in (cache_folder, temporary_folder):
        try:
            target = folder() / file
            if _whole(target):
                return target
            with _lock(target.with_suffix(".lock")):
                if not _whole(target):
                    _compile([*compiler, *flags, str(source)], target)
            if reasons:
                _say(f"native kernels are kept in {target.parent}: {reasons[0]}")
            return target
        except OSError as error:
            reasons.append(f"{error.filename}: {error.strerror}" if error.filename else str(error))
    raise BuildError(f"no folder for built libraries can be used: {'; '.join(reasons)}")


def find_compiler() -> list[str]:
    """The command of the C++ compiler that builds use; raises BuildError when there is none."""
    wanted = os.environ.get("CXX", "").strip()
    if not wanted:
        commands = [["c++"], ["g++"], ["clang++"]]
    else:
        commands = [[wanted]] if shutil.which(wanted) else [_split("CXX")]  # a path may have spaces in it
    for name, *arguments in commands:
        if found := shutil.which(name):
            return [found, *arguments]
    raise BuildError(f"no C++ compiler: {' and '.join(command[0] for command in commands)} not found")


def cache_folder() -> Path:
    """Where built libraries are kept, made if need be; raises OSError where that is impossible."""
    try:
        folder = Path(os.environ.get("ATTENTION_BENCH_CACHE") or Path.home() / ".cache" / "attention-bench")
    except RuntimeError as error:  # no HOME, and a user that the system does not know
        raise FileNotFoundError(str(error)) from error
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def temporary_folder() -> Path:
    """A folder for libraries that this user alone can write; raises OSError where there is none."""
    folder = Path(tempfile.gettempdir()) / f"attention-bench-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise PermissionError(errno.EACCES, "others can write libraries there", str(folder))
    return folder


def _compile(command: list[str], target: Path) -> None:
    """Compile into a file of its own and move it into place, so that no one loads half a library."""
    handle, name = tempfile.mkstemp(suffix=".so", dir=target.parent)
    os.close(handle)
    try:
        done = subprocess.run(
            [*command, "-o", name], capture_output=True, text=True, timeout=BUILD_LIMIT_S, check=False, errors="replace"
        )
        if done.returncode:
            raise BuildError(f"{command[0]} failed: {done.stderr.strip()[-500:]}")
        sum_of = hashlib.sha256(Path(name).read_bytes()).hexdigest()
        _checksum(target).unlink(missing_ok=True)
        Path(name).replace(target)
        _checksum(target).write_text(sum_of, encoding="utf8")
    except subprocess.TimeoutExpired as error:
        raise BuildError(f"{command[0]} took over {BUILD_LIMIT_S:.0f} s") from error
    finally:
        Path(name).unlink(missing_ok=True)


def _whole(target: Path) -> bool:
    """Whether the cache has this library as it was built: to load one that was cut off can end the process."""
    try:
        found = hashlib.sha256(target.read_bytes()).hexdigest(), _checksum(target).read_text("utf8", errors="replace")
    except FileNotFoundError:
        return False
    if found[0] == found[1]:
        return True
    _say(f"the native library {target} is damaged and is built again")
    return False


def _checksum(target: Path) -> Path:
    return target.with_suffix(".sha256")


@functools.cache
def _say(message: str) -> None:
    """Log a message once."""
    log.warning("%s", message)


def _split(variable: str) -> list[str]:
    """The words of an environment variable, as a shell splits them."""
    try:
        return shlex.split(os.environ.get(variable, ""))
    except ValueError as error:
        raise BuildError(f"{variable}={os.environ[variable]!r} cannot be split into words: {error}") from error


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    """The kernel's own lock, which ends with the process that holds it, however that ends."""
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


def _digest(source: Path, compiler: list[str], flags: list[str]) -> str:
    try:
        asked = [*compiler, "--version"]
        version = subprocess.run(
            asked, capture_output=True, text=True, timeout=VERSION_LIMIT_S, check=False, errors="replace"
        ).stdout
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildError(f"{shlex.join(compiler)} does not run: {error}") from error
    texts = [path.read_text(encoding="utf8") for path in (source, *sorted(source.parent.glob("*.hpp")))]
    parts = [*texts, shlex.join(compiler), version, " ".join(flags), platform.machine(), _processor()]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _processor() -> str:
    """What `-march=native` depends on."""
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return platform.processor()
    lines = info.read_text(encoding="utf8").splitlines()
    return "".join(sorted({line for line in lines if line.startswith(("flags", "Features", "model name"))}))
