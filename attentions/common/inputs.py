"""Checks of an attention's inputs before the backend's code runs, and their conversion to one dtype.

The checks read shapes and types; they read values only of `first`, which has one number per sequence.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from attentions.base import Attention

LAYOUTS = {"q": "(B, H, N, D)", "k": "(B, G, M, D)", "v": "(B, G, M, E)"}
INTEGERS = (torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64)


def one_dtype(*tensors: Tensor, dtype: torch.dtype | None = None) -> tuple[Tensor, ...]:
    """Convert q, k and v to one dtype under autocast: `dtype`, else their common dtype, else autocast's.

    Models under autocast often mix dtypes: rotary embeddings in float32 with values in bfloat16. Like autocast, this
    leaves float64 unchanged. Remaining differences are left for the checks to reject. Raises ValueError for an argument
    that is not a tensor.
    """
    require_tensors(dict(zip("qkv", tensors, strict=False)))
    wanted = dtype or tensors[0].dtype
    if all(x.dtype == wanted for x in tensors) or not under_autocast(tensors[0]):
        return tensors
    if any(x.dtype == torch.float64 or not x.is_floating_point() for x in tensors):
        return tensors
    wanted = dtype or torch.get_autocast_dtype(tensors[0].device.type)
    return tuple(x.to(wanted) for x in tensors)


def under_autocast(x: Tensor) -> bool:
    """Whether autocast applies to operations on this tensor's device."""
    kind = x.device.type
    return torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)


def check_inputs(attention: Attention, q: Tensor, k: Tensor, v: Tensor | None) -> None:
    """Raise ValueError unless q (B, H, N, D), k (B, G, M, D) and v (B, G, M, E) fit the attention and each other."""
    a, given = attention, (q, k) if v is None else (q, k, v)
    if all(x.ndim == 4 and x.dtype == q.dtype and x.device == q.device and x.layout is torch.strided for x in given):
        (B, H, _, D), (of_k, G, M, width) = q.shape, k.shape
        fits = of_k == B and a.heads == H and a.kv_heads == G and D == width == a.head_dim
        if fits and (v is None or v.shape == (B, G, M, a.value_dim)):
            return
    _refuse(a, dict(zip("qkv", given, strict=False)))


def require_tensors(given: dict[str, Tensor]) -> None:
    """Raise ValueError unless each of these is a tensor."""
    for name, x in given.items():
        if not isinstance(x, Tensor):
            raise ValueError(f"{name} is {type(x).__name__}: it must be a tensor")


def _refuse(a: Attention, given: dict[str, Tensor]) -> None:
    """Raise ValueError that names the tensor, what it is and what is allowed."""
    q, k = given["q"], given["k"]
    for name, x in given.items():
        if x.ndim != 4:
            raise ValueError(f"{name} has shape {tuple(x.shape)}: it must have four axes, {LAYOUTS[name]}")
        if x.dtype != q.dtype:
            raise ValueError(f"{name} is {x.dtype} and q is {q.dtype}: q, k and v must have the same dtype")
        if x.device != q.device:
            raise ValueError(f"{name} is on {x.device} and q on {q.device}: q, k and v must be on the same device")
        if x.layout is not torch.strided:
            raise ValueError(f"{name} has the layout {x.layout}: it must be dense (torch.strided)")
    batch, keys = q.shape[0], k.shape[2]
    wanted = {
        "q": (batch, a.heads, q.shape[2], a.head_dim),
        "k": (batch, a.kv_heads, keys, a.head_dim),
        "v": (batch, a.kv_heads, keys, a.value_dim),
    }
    for name, x in given.items():
        if x.shape != wanted[name]:
            raise ValueError(
                f"{name} has shape {tuple(x.shape)}: with q of batch {batch} and k of length {keys} it must have "
                f"{wanted[name]}, for heads={a.heads}, kv_heads={a.kv_heads}, head_dim={a.head_dim} and "
                f"value_dim={a.value_dim}"
            )


def check_first(first: Tensor, q: Tensor, k: Tensor) -> None:
    """Raise ValueError unless `first` holds a position from 0 to M per sequence; M means all padding."""
    require_tensors({"first": first})
    if first.dtype not in INTEGERS or first.shape != q.shape[:1]:
        raise ValueError(
            f"first is {first.dtype} of shape {tuple(first.shape)}: it must hold one integer per sequence, "
            f"shape {tuple(q.shape[:1])}"
        )
    if first.device != q.device and first.device.type != "cpu":
        raise ValueError(f"first is on {first.device} and q on {q.device}: it must be on q's device or the CPU")
    if holds_values(first):
        wrong = [x for x in first.tolist() if not 0 <= x <= k.shape[2]]
        if wrong:
            raise ValueError(f"first holds {wrong[0]}: it must be from 0 to the number of keys, {k.shape[2]}")


def check_tokens(x: Tensor, weight: Tensor, *, first: Tensor | None = None, rows: Tensor | None = None) -> None:
    """Raise ValueError unless x (B, N, C), `first` and `rows` fit a block whose projection has `weight` (_, C)."""
    require_tensors({"x": x})
    width = weight.shape[1]
    if x.layout is not torch.strided:
        raise ValueError(f"x has the layout {x.layout}: it must be dense (torch.strided)")
    if x.ndim != 3 or x.shape[2] != width:
        raise ValueError(f"x has shape {tuple(x.shape)}: it must be (B, N, {width}), batch, tokens and model_dim")
    if x.device != weight.device:
        raise ValueError(
            f"x is on {x.device} and the block's weights on {weight.device}: they must be on the same device"
        )
    if x.dtype != weight.dtype and not (x.is_floating_point() and under_autocast(x)):
        raise ValueError(f"x is {x.dtype} and the block's weights are {weight.dtype}: they must have the same dtype")
    if first is not None:
        check_first(first, x[:, None], x[:, None])
    if rows is not None:
        check_index("rows", rows, x.shape[1])


def check_index(name: str, index: Tensor, size: int) -> None:
    """Raise ValueError unless `index` is a vector of integers from 0 to size - 1."""
    require_tensors({name: index})
    if index.dtype not in INTEGERS or index.ndim != 1:
        raise ValueError(f"{name} is {index.dtype} of shape {tuple(index.shape)}: it must be a vector of integers")
    if holds_values(index):
        wrong = [x for x in index.tolist() if not 0 <= x < size]
        if wrong:
            raise ValueError(f"{name} holds {wrong[0]}: it must be from 0 to {size - 1}")


def holds_values(x: Tensor) -> bool:
    """Whether a tensor's values can be read; false while a call is traced or captured."""
    return not (
        torch.compiler.is_compiling()
        or x.is_meta
        or type(x) is not Tensor
        or torch._C._functorch.is_functorch_wrapped_tensor(x)  # type: ignore[attr-defined]
        or (x.is_cuda and torch.cuda.is_current_stream_capturing())
    )


def hide_padding(x: Tensor, first: Tensor | None, start: int = 0, dim: int = 2) -> Tensor:
    """Zero everything before each row's first real position; entry 0 of axis `dim` is position `start`."""
    if first is None:
        return x
    at = torch.arange(start, start + x.shape[dim], device=x.device)
    hidden = at < first.to(x.device)[:, None]
    return x.masked_fill(hidden.view(len(first), *[1] * (dim - 1), x.shape[dim], *[1] * (x.ndim - dim - 1)), 0)


def whole_vectors(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Make the last axis contiguous: torch's CPU flash kernel silently misreads tensors where it is not."""
    return tuple(x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous() for x in tensors)


def without_padding(q: Tensor, *keyed: Tensor, first: Tensor) -> tuple[Tensor, ...]:
    """Zero q and the keys (and values) before each row's first real position."""
    keys = keyed[0].shape[2]
    hidden = (torch.arange(keys, device=q.device) < first.to(q.device)[:, None])[:, None, :, None]
    return q.masked_fill(hidden[:, :, keys - q.shape[2] :], 0), *(x.masked_fill(hidden, 0) for x in keyed)


@contextlib.contextmanager
def lasting() -> Iterator[None]:
    """Create tensors inside this context as normal tensors, so that they can be written to in any mode later."""
    if not torch.is_inference_mode_enabled():
        yield
        return
    with torch.inference_mode(False), torch.no_grad():
        yield
