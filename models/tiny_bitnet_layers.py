"""Training-time layers of the tiny BitNet: gradually quantised linears, and attention with a fast CPU backward pass.

Weights that are ternary from the first step start learning late. So a linear uses w + share (quantised w - w), and
the same for its activations, and `share` rises from 0 to 1: Mekkouri et al. 2024, "Fine-tuning LLMs to 1.58bit",
https://huggingface.co/blog/1_58_llm_extreme_quantization. At 1, this equals transformers' `AutoBitLinear`, which the
stored model uses.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.bitnet import AutoBitLinear

ROWS = "tiny_bitnet_rows"  # attn_implementation, after `register_rows`
CHUNK = 256  # queries per chunk; skips the masked half of the scores in long rows


class _Straight(torch.autograd.Function):
    """Interpolates from x to `rounded` by `share`, with a straight-through gradient to x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rounded: Tensor, share: Tensor) -> Tensor:
        return torch.lerp(x, rounded, share)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return grads[0], None, None


class WarmingBitLinear(AutoBitLinear):
    """An `AutoBitLinear` that is quantised by `share` in training, and completely in eval mode."""

    share: Float[Tensor, ""]

    def forward(self, input: Float[Tensor, "... i"]) -> Float[Tensor, "... o"]:  # noqa: A002 - nn.Linear names it so
        if not self.training:
            return super().forward(input)
        scale = self.weight.detach().abs().mean().clamp(min=1e-5)
        weight = (self.weight.detach() / scale).round().clamp(-1, 1) * scale
        x = input.float()
        steps = 127 / x.detach().abs().amax(-1, keepdim=True).clamp(min=1e-5)
        rounded = (x.detach() * steps).round().clamp(-128, 127) / steps
        return F.linear(
            _Straight.apply(x, rounded, self.share), _Straight.apply(self.weight, weight, self.share), self.bias
        )


def warm(model: nn.Module) -> Float[Tensor, ""]:
    """Turn every online `AutoBitLinear` of `model` into a `WarmingBitLinear` in place; returns the share to set."""
    share = torch.ones(())
    for module in model.modules():
        if type(module) is AutoBitLinear and module.online_quant:
            module.__class__ = WarmingBitLinear
            module.register_buffer("share", share, persistent=False)
    return share


def register_rows() -> None:
    """Register `attend_rows` in transformers as `ROWS`, without a mask: rows are causal and have no inner padding."""
    AttentionInterface.register(ROWS, attend_rows)
    AttentionMaskInterface.register(ROWS, lambda *_given, **_named: None)


def attend_rows(
    module: nn.Module,
    query: Float[Tensor, "B h n d"],
    key: Float[Tensor, "B g n d"],
    value: Float[Tensor, "B g n d"],
    attention_mask: None,
    **_settings: Any,
) -> tuple[Float[Tensor, "B n h d"], None]:
    """Causal attention in the value's dtype, including scores, with plain matrix products.

    torch's fused kernel takes 33 ms for the backward pass of 64 rows of 64 tokens in bfloat16; this takes 4 ms.
    """
    query, key = query.to(value.dtype), key.to(value.dtype)
    parts = [_chunk(query, key, value, start) for start in range(0, query.shape[2], CHUNK)]
    return torch.cat(parts, 2).transpose(1, 2), None


def _chunk(query: Tensor, key: Tensor, value: Tensor, start: int) -> Tensor:
    batch, heads, n, width = query.shape
    groups, end = key.shape[1], min(start + CHUNK, n)
    rows, count = batch * groups, end - start
    asked = query[:, :, start:end].reshape(rows, heads // groups * count, width)
    keys, values = (x[:, :, :end].reshape(rows, end, width) for x in (key, value))
    later = torch.full((count, end), float("-inf"), dtype=query.dtype).triu(start + 1).repeat(heads // groups, 1)
    scores = torch.baddbmm(later, asked, keys.transpose(1, 2), alpha=width**-0.5)
    return torch.bmm(scores.softmax(-1), values).reshape(batch, heads, count, width)
