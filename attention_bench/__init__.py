"""Which attention to use at which length, on your own hardware, and what it costs in time, memory and quality.

The Python interface of the benchmark; `attention-bench` is its command line. Each name is imported when it is first
used, so that none of them waits for what the others need: `attend_with` and `BoundedCache` need the extra `models`.
"""

from __future__ import annotations

import importlib
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from attention_bench.sweeps import Run, run_sweep
    from attentions import BACKENDS, Attention, build
    from bmrt import BoundedCache
    from harness.stats.fit import Fit
    from harness.stats.scaling import fit_scaling
    from lsh_bitnet import attend_with

__version__ = version("attention-bench")
__all__ = [
    "BACKENDS",
    "Attention",
    "BoundedCache",
    "Fit",
    "Run",
    "__version__",
    "attend_with",
    "build",
    "fit_scaling",
    "run_sweep",
]
_HOMES = {
    "Attention": "attentions",
    "BACKENDS": "attentions",
    "build": "attentions",
    "BoundedCache": "bmrt",
    "attend_with": "lsh_bitnet",
    "Fit": "harness.stats.fit",
    "fit_scaling": "harness.stats.scaling",
    "Run": "attention_bench.sweeps",
    "run_sweep": "attention_bench.sweeps",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
