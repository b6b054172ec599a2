"""The C++ short convolution with SiLU behind tensors."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from attentions.native import library
from attentions.native.calls import NAMES, call, useful_threads


def available(x: Tensor) -> bool:
    """Whether the kernel runs for this tensor: on the CPU, in a precision it has; builds it when first asked."""
    return x.device.type == "cpu" and x.dtype in NAMES and library("short_convolution") is not None


def forward(
    x: Float[Tensor, "B N C"], weight: Float[Tensor, "W C"], bias: Float[Tensor, " C"]
) -> Float[Tensor, "B N C"]:
    """The convolution and SiLU; x may be a slice of wider rows."""
    x, sizes = _rows(x, weight)
    y = x.new_empty(x.shape)
    call("short_convolution", f"short_convolution_forward_{NAMES[x.dtype]}", x, weight, bias, sizes, y)
    return y


def backward(
    grad: Float[Tensor, "B N C"],
    x: Float[Tensor, "B N C"],
    weight: Float[Tensor, "W C"],
    bias: Float[Tensor, " C"],
) -> tuple[Float[Tensor, "B N C"], Float[Tensor, "W C"], Float[Tensor, " C"]]:
    """Gradients of x, weight and bias."""
    x, sizes = _rows(x, weight)
    items = x.shape[0] * -(-x.shape[1] // call("short_convolution", "short_convolution_block"))
    dx, dweight, dbias = x.new_empty(x.shape), x.new_empty(items, *weight.shape), x.new_empty(items, *bias.shape)
    name = f"short_convolution_backward_{NAMES[x.dtype]}"
    call("short_convolution", name, x, weight, bias, sizes, grad.contiguous(), dx, dweight, dbias)
    return dx, dweight.sum(0), dbias.sum(0)


def _rows(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    x = x if x.stride(2) == 1 else x.contiguous()
    return x, torch.tensor([*x.shape, len(weight), x.stride(0), x.stride(1), useful_threads(x.numel())])
