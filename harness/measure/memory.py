"""Memory of one call: limit it, and measure it in two ways.

The resident high-water mark is the physical memory used, in pages. The running sum of torch's allocator trace is exact
and identical in every run. Both count what a call takes beyond what was there before, output included.
"""

from __future__ import annotations

import ctypes
import gc
import re
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

STATUS = Path("/proc/self/status")
CLEAR = Path("/proc/self/clear_refs")

# glibc's mallopt parameters (malloc.h).
M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3
M_MMAP_MAX = -4
MMAP_MAX = 2**16  # the default number of blocks that may have a mapping of their own


def return_freed_memory() -> None:
    """Make the C library return freed blocks at once, so that the resident size follows actual use."""
    _mallopt(M_MMAP_THRESHOLD, 2**16)
    _mallopt(M_TRIM_THRESHOLD, 2**16)


def keep_freed_memory() -> None:
    """Make the C library keep freed blocks, as it does in a long-lived process.

    These are the values at which glibc's adaptive thresholds settle; setting them from the start makes the first calls
    cost what later ones do.
    """
    _mallopt(M_MMAP_THRESHOLD, 2**25)
    _mallopt(M_TRIM_THRESHOLD, 2**26)


def limit(extra_bytes: int | None) -> None:
    """Limit this process's growth in address space to `extra_bytes` from now on, or remove the limit."""
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    now = _status_bytes("VmSize")
    if extra_bytes is None or now is None:
        resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
        return
    wanted = now + extra_bytes
    resource.setrlimit(resource.RLIMIT_AS, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard))


@contextmanager
def unmeasured() -> Iterator[None]:
    """Lift the memory limit and reuse large blocks within this block, which runs the harness's own checks.

    Otherwise each large block would be mapped and unmapped, and its pages cleared by the kernel, which takes longer
    than computing the float64 rows. Afterwards all memory is returned, and the C library is left as by
    `keep_freed_memory`.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
    _mallopt(M_MMAP_MAX, 0)
    _mallopt(M_TRIM_THRESHOLD, -1)
    try:
        yield
    finally:
        _mallopt(M_MMAP_MAX, MMAP_MAX)
        keep_freed_memory()
        _trim()
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def resident_peak(call: Callable[[], Any]) -> tuple[Any, int | None]:
    """Return a call's answer and its resident peak in bytes; None if the system does not report it."""
    gc.collect()
    _trim()
    base = _reset_high_water()
    answer = call()
    peak = _status_bytes("VmHWM")
    return answer, None if base is None or peak is None else max(0, peak - base)


def allocator_peak(call: Callable[[], Any]) -> tuple[Any, int]:
    """Return a call's answer and the peak running sum of bytes that torch's CPU allocator handed out during it.

    Includes buffers that kernels allocate inside C++, but not memory that libraries take directly from the system.
    """
    # Not torch.profiler.profile, which spends two seconds importing torch's compiler to check for CUDA graphs.
    profile = torch.autograd.profiler.profile(use_cpu=True, profile_memory=True)
    with profile:
        answer = call()
    assert profile.kineto_results is not None, "the profile has ended"
    every: list[Any] = profile.kineto_results.events()
    events = sorted((e for e in every if e.name() == "[memory]"), key=lambda e: e.start_ns())
    held = peak = 0
    for event in events:
        held += event.nbytes()
        peak = max(peak, held)
    return answer, peak


def device_peak(call: Callable[[], Any], device: torch.device) -> tuple[Any, int]:
    """Return a call's answer and the peak bytes of torch's CUDA allocator during it, minus those held before."""
    torch.cuda.synchronize(device)
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    base = torch.cuda.memory_allocated(device)
    answer = call()
    torch.cuda.synchronize(device)
    return answer, torch.cuda.max_memory_allocated(device) - base


def _mallopt(parameter: int, value: int) -> None:
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # only glibc has it
    if mallopt is not None:
        mallopt(parameter, value)


def _trim() -> None:
    malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if malloc_trim is not None:
        malloc_trim(0)


def _reset_high_water() -> int | None:
    """Reset the resident high-water mark to the current resident size, and return that size."""
    try:
        CLEAR.write_text("5")
    except OSError:  # not Linux, or a container that forbids it
        return None
    return _status_bytes("VmRSS")


def _status_bytes(name: str) -> int | None:
    """Return a line of the kernel's process status in bytes; None if unavailable."""
    try:
        found = re.search(rf"^{name}:\s+(\d+) kB", STATUS.read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None
