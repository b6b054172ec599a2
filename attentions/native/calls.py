"""The only entry point to the C++ kernels: checks the memory they read and write and passes it as pointers."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any, NamedTuple, NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor

from attentions.native import library

NAMES = {torch.float32: "float32", torch.float64: "float64", torch.int32: "int32", torch.int64: "int64"}
VECTOR_BYTES = 64  # the widest vector that the kernels use
ALONE = 1 << 14  # numbers that one thread processes before a second thread would have started
MAX_INDEX = 2**31 - 2  # ranks and codes are stored in 32 bits


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
    assert found is not None, f"check that {kernel} is available first"
    run = getattr(found, function)
    run.restype = ctypes.c_char_p
    passed: list[object] = []
    for name, x in arguments.items():  # one loop without helpers: decoding a token is little more than this call
        if isinstance(x, int):
            passed.append(ctypes.c_int64(x))
        elif isinstance(x, float):
            passed.append(ctypes.c_double(x))
        elif x and isinstance(x[0], int):
            passed.append((ctypes.c_int64 * len(x))(*x))  # type: ignore[arg-type]
        else:
            addresses: list[int | None] = []
            buffers: Any = (x,) if isinstance(x, Buffer) else x
            for tensor, shape, dtype, strides in buffers:
                if tensor is None:
                    addresses.append(None)
                    continue
                laid_out = tensor.is_contiguous() if strides is None else tensor.stride() == strides
                fits = tensor.shape == shape and tensor.dtype == dtype and tensor.device.type == "cpu" and laid_out
                if is_functorch_wrapped_tensor(tensor) or not fits:
                    _refuse(f"{function}: {name}", tensor, shape, dtype, strides)
                addresses.append(tensor.data_ptr())
            single = isinstance(x, Buffer)
            passed.append(ctypes.c_void_p(addresses[0]) if single else (ctypes.c_void_p * len(addresses))(*addresses))
    failure = run(*passed)
    if failure == b"out of memory":
        raise MemoryError(f"{function} of the native kernel {kernel} ran out of memory")
    if failure:
        raise ValueError(f"{function}: {failure.decode()}")


def constant(kernel: str, function: str) -> int:
    """Return the result of a function without parameters."""
    found = library(kernel)
    assert found is not None, f"check that {kernel} is available first"
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
        raise ValueError(f"a tensor of shape {tuple(x.shape)} was given to a kernel that expects shape {shape}")
    return (F.pad(x, (0, wide - x.shape[-1])) if wide > x.shape[-1] else x).contiguous()  # F.pad by nothing would copy


def plain(x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Return x detached and contiguous, in a dtype the kernels support: `dtype`, x's own, or else float32."""
    own = x.dtype if x.dtype in (torch.float32, torch.float64) else torch.float32
    return x.detach().to(dtype or own).contiguous()


def _refuse(
    name: str, x: Tensor, shape: tuple[int, ...], dtype: torch.dtype, strides: tuple[int, ...] | None
) -> NoReturn:
    """Raise ValueError for memory that is not what the kernel expects.

    Raises RuntimeError inside a transform of torch.func, whose tensors have no data of their own.
    """
    if is_functorch_wrapped_tensor(x):
        raise RuntimeError(f"{name} is inside a torch.func transform (vmap, grad, jvp), which native kernels lack")
    raise ValueError(
        f"{name} is {x.dtype} of shape {tuple(x.shape)} and strides {x.stride()} on {x.device}: the kernel "
        f"expects {dtype} of shape {shape}, {strides or 'contiguous'}, on the CPU"
    )
