"""Products with guaranteed precision, and modules whose tensors are not rounded by conversions.

Selection (signs of projections, the nearest codeword) depends on differences that rounding can hide. Autocast and
reduced float32 products (`torch.set_float32_matmul_precision`, TF32) may make an output less accurate, but must not
change which keys are attended to.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, ParamSpec, TypeVar

import torch
from torch import Tensor, nn

P = ParamSpec("P")
R = TypeVar("R")


def without_autocast(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """A context in which operations on this device compute in their inputs' dtype."""
    kind = device.type
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        return torch.autocast(kind, enabled=False)
    return contextlib.nullcontext()


def in_own_dtype(function: Callable[P, R]) -> Callable[P, R]:
    """Wrap `function` to run without autocast on the device of its first tensor argument."""

    @functools.wraps(function)
    def run(*arguments: P.args, **named: P.kwargs) -> R:
        device = next(x.device for x in (*arguments, *named.values()) if isinstance(x, Tensor))
        with without_autocast(device):
            return function(*arguments, **named)

    return run


@contextlib.contextmanager
def exact_products(device: torch.device) -> Iterator[None]:
    """A context in which products on this device keep their inputs' precision: no autocast, full float32.

    The setting is process-wide, so products in other threads are also exact until the last thread leaves the context.
    """
    with without_autocast(device), _WHOLE[device.type] if device.type in _WHOLE else contextlib.nullcontext():
        yield


class _Whole:
    """Keeps a backend's float32 products in full float32, from the first thread's entry to the last one's exit."""

    def __init__(self, backend: Any) -> None:
        self._backend, self._lock = backend, threading.Lock()
        self._inside, self._before = 0, ""

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                self._before = self._backend.fp32_precision
                self._set("ieee")
            self._inside += 1

    def __exit__(self, *raised: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                self._set(self._before)

    def _set(self, precision: str) -> None:
        if self._before not in ("none", "ieee"):  # these are full precision already
            self._backend.fp32_precision = precision


_WHOLE: Mapping[str, _Whole] = {
    "cpu": _Whole(torch.backends.mkldnn.matmul),  # type: ignore[attr-defined]
    "cuda": _Whole(torch.backends.cuda.matmul),
}


class Selector(nn.Module):
    """A module whose parameters and buffers decide which keys are attended to.

    `half()` and other conversions below float32 may move them to another device but keep their dtype. They are part of
    the state dict. Those in `added` were not in its version 1: a state dict without them still loads, and the module
    keeps its own.
    """

    _version = 2
    added: ClassVar[tuple[str, ...]] = ()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Selector:
        def whole(x: Tensor) -> Tensor:
            converted = fn(x)
            narrower = converted.is_floating_point() and converted.itemsize < min(x.itemsize, torch.float32.itemsize)
            return x.to(converted.device) if narrower else converted

        return super()._apply(whole, recurse)

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        local_metadata: Mapping[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        if (local_metadata.get("version") or 1) < self._version:  # a file with only tensors has no version
            old = {prefix + name for name in self.added}
            missing_keys[:] = [key for key in missing_keys if key not in old]
