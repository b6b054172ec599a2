"""Measure this machine's peak rates; data sheets are unreliable for virtual machines.

Runs in a child, so that the sweep itself starts no threads and takes no memory.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from harness.common.job import Job
from harness.measure.timer import time_once

MATMUL_SIZES = (512, 1024, 2048, 4096, 8192)
COPY_BYTES = 2**27  # larger than any cache
MOST_LOOKS = 10_000  # so that it ends even if the clock stands still

# The dtypes that can represent all values of a dtype: a kernel may compute in any of them, and be faster for it.
WIDER = {
    "float64": (),
    "float32": ("float64",),
    "bfloat16": ("float32", "float64"),
    "float16": ("float32", "float64"),
}


@dataclass(frozen=True)
class ReachedRates:
    """The highest rates seen: FLOP/s of matmul by dtype, and bytes per second, read and written, of a copy.

    `gpu` is the device's name, "" on the CPU.
    """

    flops_per_s: dict[str, float]
    copy_bytes_per_s: float
    gpu: str


@dataclass(frozen=True)
class MeasureCeilings(Job[ReachedRates]):
    """Measure the device's peak rates within `budget_s`.

    A dtype's rate is the best of all dtypes at least as wide: a processor without half-precision instructions
    multiplies half precision far slower than float32. A dtype that the device cannot multiply in any of these gets 0.
    """

    device: str
    dtypes: list[str]
    threads: int
    budget_s: float

    def run(self) -> ReachedRates:
        torch.set_num_threads(self.threads)
        where = torch.device(self.device)
        needed = dict.fromkeys(name for dtype in self.dtypes for name in (dtype, *WIDER[dtype]))
        share_s = self.budget_s / (len(needed) + 1)
        reached = {dtype: _matmul_flops_per_s(where, getattr(torch, dtype), share_s) for dtype in needed}
        flops_per_s = {dtype: max(reached[name] for name in (dtype, *WIDER[dtype])) for dtype in self.dtypes}
        return ReachedRates(flops_per_s, _copy_bytes_per_s(where, share_s), _name(where))


def _matmul_flops_per_s(device: torch.device, dtype: torch.dtype, budget_s: float) -> float:
    """Multiply ever larger square matrices, because small ones do not fill the machine, repeatedly while time is left.

    A busy machine slows single products, but not the fastest of many.
    """
    best, until = 0.0, time.perf_counter() + budget_s
    for _ in range(MOST_LOOKS):
        for size in MATMUL_SIZES:
            flops = 2.0 * size**3
            if best and time.perf_counter() + 2 * flops / best > until:
                break
            try:
                a = torch.ones(size, size, dtype=dtype, device=device)
                best = max(best, flops / _seconds(lambda a=a: a @ a, device))
            except (RuntimeError, TypeError):  # no kernel for this dtype, no such dtype, or no memory
                return best
        if best and time.perf_counter() + 2 * 2.0 * MATMUL_SIZES[0] ** 3 / best > until:
            break
    return best


def _copy_bytes_per_s(device: torch.device, budget_s: float) -> float:
    source = torch.ones(COPY_BYTES, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    until, fastest_s = time.perf_counter() + budget_s, math.inf
    for _ in range(MOST_LOOKS):
        fastest_s = min(fastest_s, _seconds(lambda: target.copy_(source), device))
        if time.perf_counter() + fastest_s > until:
            break
    return 2 * COPY_BYTES / fastest_s


def _seconds(call: Callable[[], object], device: torch.device) -> float:
    """Return the faster time of two calls, as the first may load a kernel; infinity if the clock stood still."""
    taken_s = [time_once(call, device)[1] for _ in range(2)]
    return min((seconds for seconds in taken_s if seconds > 0), default=math.inf)


def _name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return "" if device.type == "cpu" else device.type
