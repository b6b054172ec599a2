"""What this machine can reach, measured: data sheets of virtual machines do not hold.

Run in a child, so that the sweep itself starts no threads and takes no memory.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import torch

from harness.clock import time_once

MATMUL_SIZES = (512, 1024, 2048, 4096, 8192)
COPY_BYTES = 2**27  # beyond any cache


def measure_ceilings(*, device: str, dtypes: list[str], threads: int, budget_s: float) -> dict[str, Any]:
    """Highest rates seen within `budget_s`: matmul by dtype, and copying (bytes read and written).

    A dtype that the device cannot multiply gets 0; `gpu` is the device's name, empty on the CPU.
    """
    torch.set_num_threads(threads)
    where = torch.device(device)
    share_s = budget_s / (len(dtypes) + 1)
    flops_per_s = {dtype: _matmul_flops_per_s(where, getattr(torch, dtype), share_s) for dtype in dtypes}
    return {"flops_per_s": flops_per_s, "copy_bytes_per_s": _copy_bytes_per_s(where, share_s), "gpu": _name(where)}


def _matmul_flops_per_s(device: torch.device, dtype: torch.dtype, budget_s: float) -> float:
    """Larger and larger square matrices, since small ones do not fill the machine, again and again while there is time.

    A busy machine makes single products slow, not the fastest of many.
    """
    best, until = 0.0, time.perf_counter() + budget_s
    while True:
        for size in MATMUL_SIZES:
            flops = 2.0 * size**3
            if best and time.perf_counter() + 2 * flops / best > until:
                break
            try:
                a = torch.ones(size, size, dtype=dtype, device=device)
                best = max(best, flops / _seconds(lambda a=a: a @ a, device))
            except RuntimeError:  # no kernel for this dtype, or no room
                return best
        if time.perf_counter() + 2 * 2.0 * MATMUL_SIZES[0] ** 3 / best > until:
            return best


def _copy_bytes_per_s(device: torch.device, budget_s: float) -> float:
    source = torch.ones(COPY_BYTES, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    until, fastest_s = time.perf_counter() + budget_s, math.inf
    while fastest_s == math.inf or time.perf_counter() + fastest_s < until:
        fastest_s = min(fastest_s, _seconds(lambda: target.copy_(source), device))
    return 2 * COPY_BYTES / fastest_s


def _seconds(call: Callable[[], object], device: torch.device) -> float:
    """The faster of two calls, the first of which may load a kernel."""
    return min(time_once(call, device)[1] for _ in range(2))


def _name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return "" if device.type == "cpu" else device.type
