"""Attention over several disjoint sets of keys as one softmax: the shared kernel per set, merged by log-sum-exp.

Backward needs no gradient of the merge: given the whole row's output and log-sum-exp, the kernel's backward of each
part returns that part's exact gradients, as in ring attention.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from attentions.buckets import window_tiles
from attentions.common.derivatives import Gradients, first_order
from attentions.native import bucket_window
from transformer_vq.precision import in_own_dtype

if TYPE_CHECKING:
    from attentions.common.windows import Windows


@dataclass(frozen=True)
class Part:
    """Keys that queries attend to through the windows of `tables`, each once; `bias` is added to every score."""

    q: Float[Tensor, "X Q D"]
    k: Float[Tensor, "X L D"]
    v: Float[Tensor, "X L E"]
    tables: list[Windows]
    bias: float = 0.0


def kernel_of(device: torch.device) -> Any:
    """The bucket kernel for tensors on a device, native or torch's."""
    return bucket_window if bucket_window.available(device) else window_tiles


def merged_attention(parts: Sequence[Part], scale: float) -> tuple[Float[Tensor, "X Q E"], Float[Tensor, "X Q"]]:
    """Softmax over the keys of all parts together, and its log-sum-exp, which is not differentiated.

    q, k and v are float32 or float64. A key in several parts counts in each.
    """
    tensors = [x for part in parts for x in (part.q, part.k, part.v)]
    rest = [(part.tables, part.bias) for part in parts]
    return _Merged.apply(rest, scale, *tensors)  # type: ignore[return-value]


def part_attention(
    part: Part, scale: float, onto: tuple[Float[Tensor, "X Q E"], Float[Tensor, "X Q"]] | None = None
) -> tuple[Float[Tensor, "X Q E"], Float[Tensor, "X Q"]]:
    """Softmax and log-sum-exp of one part; with `onto`, merged with the earlier parts in place."""
    if onto is not None and part.bias:
        onto[1].sub_(part.bias)
    out, lse = kernel_of(part.q.device).forward(part.q, part.k, part.v, part.tables, scale, once=True, onto=onto)
    return out, lse.add_(part.bias) if part.bias else lse


class _Merged(torch.autograd.Function):
    @staticmethod
    @in_own_dtype
    def forward(
        ctx: Any, rest: list[tuple[list[Windows], float]], scale: float, *tensors: Tensor
    ) -> tuple[Tensor, Tensor]:
        triples = zip(*(tensors[i::3] for i in range(3)), strict=True)
        parts = [Part(q, k, v, tables, bias) for (q, k, v), (tables, bias) in zip(triples, rest, strict=True)]
        found = None
        for part in parts:
            found = part_attention(part, scale, found)
        assert found is not None, "at least one band is required"
        out, lse = found
        if any(ctx.needs_input_grad[2:]):
            ctx.save_for_backward(out, lse, *tensors)
            ctx.rest, ctx.scale = rest, scale
        ctx.mark_non_differentiable(lse)
        return out, lse

    @staticmethod
    @first_order
    @in_own_dtype
    def backward(ctx: Any, saved: tuple[Tensor, ...], *grads: Tensor) -> Gradients:
        out, lse, *tensors = saved
        kernel, found = kernel_of(out.device), []
        for i, (tables, bias) in enumerate(ctx.rest):
            q, k, v = tensors[3 * i : 3 * i + 3]
            found += kernel.backward(grads[0], q, k, v, out, lse - bias, tables, ctx.scale, once=True)
        return None, None, *found
