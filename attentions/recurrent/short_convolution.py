"""The short causal convolution of the Mamba blocks: depthwise, over a few positions, followed by SiLU.

A C++ kernel runs it in one pass; otherwise it is one product per tap. torch's own convolution is not used: it needs
time as the last axis, so input and output would be transposed, and on a CPU with as many groups as channels it slows
down with length.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from attentions.common.derivatives import Gradients, first_order
from attentions.native import short_convolution as native


def short_convolution(
    x: Float[Tensor, "B N C"], weight: Float[Tensor, "C 1 W"], bias: Float[Tensor, " C"] | None
) -> Float[Tensor, "B N C"]:
    """SiLU of a depthwise convolution over each position and the W - 1 before it; weights as in `torch.nn.Conv1d`.

    Half precision, of x or of the weights (which autocast does not cast), is computed in float32. The output has x's
    dtype.
    """
    dtype, wide = x.dtype, torch.promote_types(torch.promote_types(x.dtype, weight.dtype), torch.float32)
    bias = None if bias is None else bias.to(wide)
    return _convolution(x.to(wide), weight.to(wide), bias).to(dtype)


def _convolution(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The same in one dtype that the kernels support."""
    if native.available(x):
        bias = x.new_zeros(x.shape[2]) if bias is None else bias
        return _ShortConvolution.apply(x, weight[:, 0].T.contiguous(), bias)  # type: ignore[return-value]
    padded, size = F.pad(x, (0, 0, weight.shape[2] - 1, 0)), x.shape[1]
    out = torch.zeros_like(x) if bias is None else bias.expand_as(x)
    for at, tap in enumerate(weight[:, 0].unbind(1)):
        out = torch.addcmul(out, tap, padded[:, at : at + size])
    return F.silu(out)


class _ShortConvolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight, bias)
        return native.forward(x, weight, bias)

    @staticmethod
    @first_order
    def backward(ctx: Any, saved: tuple[Tensor, ...], *grads: Tensor) -> Gradients:
        return native.backward(grads[0], *saved)
