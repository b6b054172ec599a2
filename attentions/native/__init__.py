"""C++ kernels for the CPU, built on first use and cached; each has a torch fallback with equal results.

The libraries have a plain C interface and no dependencies, so a build takes seconds and needs no torch headers.
Environment variables:

    CXX                        the compiler, optionally with arguments or a launcher ("ccache g++ -m64"); default: the
                               first of c++, g++ and clang++ that exists
    ATTENTION_BENCH_CXXFLAGS   flags added to the build's own ("-march=x86-64-v3", "-fsanitize=address"); libraries
                               built with other flags are kept separate
    ATTENTION_BENCH_CACHE      folder for built libraries; default: ~/.cache/attention-bench

If that folder is not writable, libraries are built in a folder of the user's own inside the temporary folder. A damaged
library in the cache is rebuilt. A failed build logs the reason once, and callers use their fallback.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
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
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

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
    """Return the library of `name`.cpp in this folder, or None if it cannot be built (the reason is logged once)."""
    try:
        path = build(name)
        try:
            return ctypes.CDLL(str(path))
        except OSError as error:  # intact, but built for another kind of machine
            _say(f"the native library {path} cannot be loaded and will be rebuilt: {error}")
            _checksum(path).unlink(missing_ok=True)
            return ctypes.CDLL(str(build(name)))
    except (BuildError, OSError) as error:
        log.warning("native kernel %s is not available; using torch instead: %s", name, error)
        return None


def build_all() -> dict[str, bool]:
    """Build every library not yet cached, so that no measurement waits for a compiler; maps name to success."""
    return {source.stem: library(source.stem) is not None for source in sorted(Path(__file__).parent.glob("*.cpp"))}


def build(name: str) -> Path:
    """Return the path of the library, building it unless the cache has an intact one.

    The cache key is the source, the compiler and the processor. Raises BuildError if there is no compiler, if compiling
    fails or takes too long, or if no folder is writable.
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
                _say(f"native kernels are stored in {target.parent}: {reasons[0]}")
            return target
        except OSError as error:
            reasons.append(f"{error.filename}: {error.strerror}" if error.filename else str(error))
    raise BuildError(f"no usable folder for built libraries: {'; '.join(reasons)}")


def find_compiler() -> list[str]:
    """Return the command of the C++ compiler used for builds; raises BuildError if there is none."""
    wanted = os.environ.get("CXX", "").strip()
    if not wanted:
        commands = [["c++"], ["g++"], ["clang++"]]
    else:
        commands = [[wanted]] if shutil.which(wanted) else [_split("CXX")]  # a path may contain spaces
    for name, *arguments in commands:
        if found := shutil.which(name):
            return [found, *arguments]
    raise BuildError(f"no C++ compiler: {' and '.join(command[0] for command in commands)} not found")


def cache_folder() -> Path:
    """Return the folder for built libraries, creating it if needed; raises OSError if that is impossible."""
    try:
        folder = Path(os.environ.get("ATTENTION_BENCH_CACHE") or Path.home() / ".cache" / "attention-bench")
    except RuntimeError as error:  # no HOME, and a user unknown to the system
        raise FileNotFoundError(str(error)) from error
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def temporary_folder() -> Path:
    """Return a folder for libraries that only this user can write; raises OSError if there is none."""
    folder = Path(tempfile.gettempdir()) / f"attention-bench-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise PermissionError(errno.EACCES, "other users can write to this folder", str(folder))
    return folder


def _compile(command: list[str], target: Path) -> None:
    """Compile to a temporary file and move it into place, so that nobody loads an incomplete library."""
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
        raise BuildError(f"{command[0]} took more than {BUILD_LIMIT_S:.0f} s") from error
    finally:
        Path(name).unlink(missing_ok=True)


def _whole(target: Path) -> bool:
    """Whether the cached library matches its checksum; loading a truncated one can crash the process."""
    try:
        found = hashlib.sha256(target.read_bytes()).hexdigest(), _checksum(target).read_text("utf8", errors="replace")
    except FileNotFoundError:
        return False
    if found[0] == found[1]:
        return True
    _say(f"the native library {target} is damaged and will be rebuilt")
    return False


def _checksum(target: Path) -> Path:
    return target.with_suffix(".sha256")


@functools.cache
def _say(message: str) -> None:
    """Log a message once."""
    log.warning("%s", message)


def _split(variable: str) -> list[str]:
    """Split an environment variable into words as a shell does."""
    try:
        return shlex.split(os.environ.get(variable, ""))
    except ValueError as error:
        raise BuildError(f"{variable}={os.environ[variable]!r} cannot be split into words: {error}") from error


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    """A lock that ends with the process that holds it, however that ends."""
    try:
        held = FileLock(path, timeout=LOCK_LIMIT_S).acquire()
    except Timeout as error:
        raise BuildError(f"another process has held {path} for more than {LOCK_LIMIT_S:.0f} s") from error
    with held:
        yield


def _digest(source: Path, compiler: list[str], flags: list[str]) -> str:
    try:
        asked = [*compiler, "--version"]
        version = subprocess.run(
            asked, capture_output=True, text=True, timeout=VERSION_LIMIT_S, check=False, errors="replace"
        ).stdout
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildError(f"{shlex.join(compiler)} cannot be run: {error}") from error
    texts = [path.read_text(encoding="utf8") for path in (source, *sorted(source.parent.glob("*.hpp")))]
    parts = [*texts, shlex.join(compiler), version, " ".join(flags), platform.machine(), _processor()]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _processor() -> str:
    """What `-march=native` depends on: the processor's features."""
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return platform.processor()
    lines = info.read_text(encoding="utf8").splitlines()
    return "".join(sorted({line for line in lines if line.startswith(("flags", "Features", "model name"))}))
