"""The only entry point to the C++ kernels: checks the memory they read and write and passes it as pointers."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor

from attentions.native import library

NAMES = {torch.float32: "float32", torch.float64: "float64", torch.int32: "int32", torch.int64: "int64"}
VECTOR_BYTES = 64  # the widest vector that the kernels use
ALONE = 1 << 14  # numbers that one thread processes before a second thread would have started
MOST = 2**31 - 2  # ranks and codes are stored in 32 bits


class Buffer(NamedTuple):
    """A tensor or None, with the shape and dtype the kernel expects; contiguous unless strides are given."""

    tensor: Tensor | None
    shape: tuple[int, ...]
    dtype: torch.dtype
    strides: tuple[int, ...] | None = None


def call(kernel: str, function: str, **arguments: Buffer | Sequence[Buffer] | list[int] | int | float) -> None:
    """Run a function of a built kernel on its arguments, in the order of its parameters.

    A list of integers is passed as an array of int64, a sequence of buffers as an array of pointers. Raises ValueError
    for memory that is not what the kernel expects and for an index outside it, and MemoryError if memory runs out.
    """
    found = library(kernel)
    assert found is not None, f"ask whether {kernel} is available first"
    run = getattr(found, function)
    run.restype = ctypes.c_char_p
    failure = run(*(_passed(f"{function}: {name}", x) for name, x in arguments.items()))
    if failure == b"out of memory":
        raise MemoryError(f"{function} of the native kernel {kernel} ran out of memory")
    if failure:
        raise ValueError(f"{function}: {failure.decode()}")


def constant(kernel: str, function: str) -> int:
    """Return the result of a function without parameters."""
    found = library(kernel)
    assert found is not None, f"ask whether {kernel} is available first"
    run = getattr(found, function)
    run.restype = ctypes.c_int64
    return run()


def whole_vectors(size: int, dtype: torch.dtype) -> int:
    """Round `size` up to a multiple of the vector lanes."""
    lanes = VECTOR_BYTES // dtype.itemsize
    return -(-size // lanes) * lanes


def useful_threads(work: int) -> int:
    """Number of threads to use for `work` numbers; decoding a token uses one."""
    return 1 if work < ALONE else torch.get_num_threads()


def filled(x: Tensor, wide: int, shape: tuple[int, ...]) -> Tensor:
    """Return x, which must have this shape, contiguous, with its last axis zero-padded to `wide`."""
    if x.shape != shape:
        raise ValueError(f"a tensor of shape {tuple(x.shape)} was given to a kernel that takes one of shape {shape}")
    return (F.pad(x, (0, wide - x.shape[-1])) if wide > x.shape[-1] else x).contiguous()  # F.pad by nothing would copy


def plain(x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Return x detached and contiguous, in a dtype the kernels support: `dtype`, x's own, or else float32."""
    own = x.dtype if x.dtype in (torch.float32, torch.float64) else torch.float32
    return x.detach().to(dtype or own).contiguous()


def _passed(name: str, x: Buffer | Sequence[Buffer] | list[int] | int | float) -> object:
    if isinstance(x, Buffer):
        return ctypes.c_void_p(_addresses(name, (x,))[0])
    if isinstance(x, int):
        return ctypes.c_int64(x)
    if isinstance(x, float):
        return ctypes.c_double(x)
    if x and isinstance(x[0], Buffer):
        return (ctypes.c_void_p * len(x))(*_addresses(name, x))  # type: ignore[arg-type]
    return (ctypes.c_int64 * len(x))(*x)  # type: ignore[arg-type]


def _addresses(name: str, memories: Sequence[Buffer]) -> list[int | None]:
    """Addresses of the tensors' data; raises ValueError unless they are what the kernel expects.

    Raises RuntimeError inside a transform of torch.func, whose tensors have no data of their own.
    """
    found: list[int | None] = []
    for x, shape, dtype, strides in memories:
        if x is None:
            found.append(None)
            continue
        if is_functorch_wrapped_tensor(x):
            raise RuntimeError(
                f"{name} is within a transform of torch.func (vmap, grad, jvp), which no native kernel has"
            )
        laid_out = x.is_contiguous() if strides is None else x.stride() == strides
        if not (x.shape == shape and x.dtype == dtype and x.device.type == "cpu" and laid_out):
            raise ValueError(
                f"{name} is {x.dtype} of shape {tuple(x.shape)} and strides {x.stride()} on {x.device}: the kernel "
                f"takes {dtype} of shape {shape}, {strides or 'contiguous'}, on the CPU"
            )
        found.append(x.data_ptr())
    return found
