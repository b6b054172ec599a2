"""The C++ short convolution with SiLU, on tensors."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from attentions.native import library
from attentions.native.calls import NAMES, Buffer, call, constant, useful_threads


def available(x: Tensor) -> bool:
    """Whether the kernel runs for this tensor: on the CPU, in a dtype it supports; the first call builds it."""
    has = x.dtype in (torch.float32, torch.float64)
    return has and x.device.type == "cpu" and library("short_convolution") is not None


def forward(
    x: Float[Tensor, "B N C"], weight: Float[Tensor, "W C"], bias: Float[Tensor, " C"]
) -> Float[Tensor, "B N C"]:
    """The convolution and SiLU; x may be a slice of wider rows."""
    inputs, dtype = _inputs(x, weight, bias), x.dtype
    y = x.new_empty(x.shape)
    call("short_convolution", f"short_convolution_forward_{NAMES[dtype]}", **inputs, y=Buffer(y, x.shape, dtype))
    return y


def backward(
    grad: Float[Tensor, "B N C"],
    x: Float[Tensor, "B N C"],
    weight: Float[Tensor, "W C"],
    bias: Float[Tensor, " C"],
) -> tuple[Float[Tensor, "B N C"], Float[Tensor, "W C"], Float[Tensor, " C"]]:
    """Gradients of x, weight and bias."""
    inputs, dtype = _inputs(x, weight, bias), x.dtype
    items = x.shape[0] * -(-x.shape[1] // constant("short_convolution", "short_convolution_block"))
    dx, dweight, dbias = x.new_empty(x.shape), x.new_empty(items, *weight.shape), x.new_empty(items, *bias.shape)
    call(
        "short_convolution",
        f"short_convolution_backward_{NAMES[dtype]}",
        **inputs,
        dy=Buffer(grad.contiguous(), x.shape, dtype),
        dx=Buffer(dx, x.shape, dtype),
        dweight=Buffer(dweight, (items, *weight.shape), dtype),
        dbias=Buffer(dbias, (items, *bias.shape), dtype),
    )
    return dx, dweight.sum(0), dbias.sum(0)


def _inputs(x: Tensor, weight: Tensor, bias: Tensor) -> dict[str, Buffer | list[int]]:
    x = x if x.stride(2) == 1 else x.contiguous()
    (B, N, C), W = x.shape, len(weight)
    return {
        "x": Buffer(x, (B, N, C), x.dtype, (x.stride(0), x.stride(1), 1)),
        "weight": Buffer(weight, (W, C), x.dtype),
        "bias": Buffer(bias, (C,), x.dtype),
        "sizes": [B, N, C, W, x.stride(0), x.stride(1), useful_threads(x.numel())],
    }
