"""Memory of one call: how much it may take, and how much it took, measured two ways.

The resident high-water mark is physical truth, in pages; the running sum of torch's allocator trace is exact
and the same in every run. Both count what a call takes beyond what was there before, its output included.
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
MMAP_MAX = 2**16  # the default: how many blocks may have a mapping of their own


def return_freed_memory() -> None:
    """Have the C library give freed blocks back at once, so that the resident size follows what is in use."""
    _mallopt(M_MMAP_THRESHOLD, 2**16)
    _mallopt(M_TRIM_THRESHOLD, 2**16)


def keep_freed_memory() -> None:
    """Have the C library keep freed blocks as it does in a long-lived process.

    These are the values that glibc's own adapting thresholds end at; set from the start, they make the first
    calls cost what later ones do.
    """
    _mallopt(M_MMAP_THRESHOLD, 2**25)
    _mallopt(M_TRIM_THRESHOLD, 2**26)


def limit(extra_bytes: int | None) -> None:
    """Let this process grow by so many bytes of address space from now on, or without limit."""
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    now = _status_bytes("VmSize")
    if extra_bytes is None or now is None:
        resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
        return
    wanted = now + extra_bytes
    resource.setrlimit(resource.RLIMIT_AS, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard))


@contextmanager
def unmeasured() -> Iterator[None]:
    """Within this block, which holds the harness's own checks, there is no limit, and large blocks are used again.

    Otherwise each would be mapped and given back, and its pages cleared by the kernel, which takes longer than the
    float64 rows themselves. Afterwards all is given back, and the C library is as `keep_freed_memory` leaves it.
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
    """A call's answer and its resident peak in bytes; None where the system does not say."""
    gc.collect()
    _trim()
    base = _reset_high_water()
    answer = call()
    peak = _status_bytes("VmHWM")
    return answer, None if base is None or peak is None else max(0, peak - base)


def allocator_peak(call: Callable[[], Any]) -> tuple[Any, int]:
    """A call's answer and the highest running sum of bytes that torch's CPU allocator handed out during it.

    Includes buffers that kernels allocate inside C++; not what libraries take from the system themselves.
    """
    # Not torch.profiler.profile, which imports torch's compiler, two seconds, to ask about CUDA graphs.
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
    """A call's answer and the most bytes that torch's CUDA allocator had handed out during it, beyond before."""
    torch.cuda.synchronize(device)
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    base = torch.cuda.memory_allocated(device)
    answer = call()
    torch.cuda.synchronize(device)
    return answer, torch.cuda.max_memory_allocated(device) - base


def _mallopt(parameter: int, value: int) -> None:
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc alone has it
    if mallopt is not None:
        mallopt(parameter, value)


def _trim() -> None:
    malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if malloc_trim is not None:
        malloc_trim(0)


def _reset_high_water() -> int | None:
    """Set the resident high-water mark to the resident size, and return that."""
    try:
        CLEAR.write_text("5")
    except OSError:  # not Linux, or a container that forbids it
        return None
    return _status_bytes("VmRSS")


def _status_bytes(name: str) -> int | None:
    """A line of the kernel's account of this process, in bytes; None where there is no such account."""
    try:
        found = re.search(rf"^{name}:\s+(\d+) kB", STATUS.read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None
