"""Tensors handed to the C++ kernels: pointers to their memory, and channels in whole vectors."""

from __future__ import annotations

import ctypes

import torch
import torch.nn.functional as F
from torch import Tensor

from attentions.native import library

NAMES = {torch.float32: "float32", torch.float64: "float64"}  # what the kernels' functions end in
VECTOR_BYTES = 64  # the widest vector that the kernels use
ALONE = 1 << 14  # numbers that one thread has done with by the time a second would have started


def call(kernel: str, function: str, *arguments: Tensor | int | None) -> int:
    """Run a function of a built kernel on pointers to the tensors; what it returns, if it is an integer."""
    found = library(kernel)
    assert found is not None, f"ask whether {kernel} is available first"
    run = getattr(found, function)
    run.restype = ctypes.c_int64
    return run(*(_pointer(x) for x in arguments))


def whole_vectors(size: int, dtype: torch.dtype) -> int:
    """The least multiple of the lanes that holds `size` numbers."""
    lanes = VECTOR_BYTES // dtype.itemsize
    return -(-size // lanes) * lanes


def useful_threads(work: int) -> int:
    """How many threads to use for so many numbers: decoding a token takes one."""
    return 1 if work < ALONE else torch.get_num_threads()


def filled(x: Tensor, wide: int) -> Tensor:
    """x, contiguous, with zeros up to `wide` on its last axis."""
    return (F.pad(x, (0, wide - x.shape[-1])) if wide > x.shape[-1] else x).contiguous()  # a pad of nothing copies


def _pointer(x: Tensor | int | None) -> object:
    if isinstance(x, int):
        return ctypes.c_int64(x)
    return ctypes.c_void_p(None if x is None else x.data_ptr())
