"""Exact softmax attention that never materialises the score matrix.

Dao 2023, FlashAttention-2, https://arxiv.org/abs/2307.08691. `impl="flash-attn"` is the authors' package (CUDA, half
precision), `impl="torch"` is torch's flash kernel for CPU or CUDA, and `impl="auto"` is flash-attn if it runs, else
torch. Dropout, soft-capping and windows are not supported.

torch aligns its causal mask to the top left. If N != M, the CPU path therefore makes two calls, one for the keys before
the first query and one for the rest, and merges them by their log-sum-exp. The CUDA path uses torch's lower-right bias.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Unpack

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from attentions.base import Attention
from attentions.common.cache import CachedStream
from attentions.common.derivatives import Gradients, first_order
from attentions.common.settings import Shape, require

if TYPE_CHECKING:
    from attentions.common.problem import Problem
    from attentions.common.stream import Stream

IMPLEMENTATIONS = ("auto", "torch", "flash-attn")


class Flash(Attention):
    """FlashAttention; the setting `impl` is "auto", "torch" or "flash-attn"."""

    paper = "https://arxiv.org/abs/2307.08691"
    exact = True
    accepts_padding = False
    claimed_time = "n^2"

    def __init__(self, heads: int, head_dim: int, *, impl: str = "auto", **shape: Unpack[Shape]) -> None:
        super().__init__(heads, head_dim, **shape)
        require(impl in IMPLEMENTATIONS, "impl", impl, f"one of {', '.join(IMPLEMENTATIONS)}")
        self.impl = impl

    def forward(
        self,
        q: Float[Tensor, "B H N D"],
        k: Float[Tensor, "B G M D"],
        v: Float[Tensor, "B G M E"],
        *,
        first: Int[Tensor, " B"] | None = None,
    ) -> Float[Tensor, "B H N E"]:
        del first  # `accepts_padding` is off
        width = max(q.shape[-1], v.shape[-1])  # the kernels want one width; zeros change no score
        q, k, padded = (widened(x, width) for x in (q, k, v))
        return self._choose(q)(q, k, padded, self.scale, self.causal)[..., : v.shape[-1]]

    def why_not(self, problem: Problem) -> str:
        if reason := super().why_not(problem):
            return reason
        half = problem.dtype in (torch.float16, torch.bfloat16)
        if self.impl == "flash-attn" and importlib.util.find_spec("flash_attn") is None:
            return "the package flash-attn is not installed"
        if self.impl == "flash-attn" and problem.device.type != "cuda":
            return "flash-attn needs a CUDA device"
        if problem.device.type == "cuda" and not half:
            return "flash kernels on CUDA support only float16 and bfloat16"
        if problem.device.type not in ("cpu", "cuda"):
            return f"torch has no flash kernel for {problem.device.type}"
        if problem.device.type == "cuda" and max(problem.head_dim, problem.value_dim) > 256:
            return "flash kernels on CUDA support head dimensions up to 256"
        return ""

    def stream(self, batch: int) -> Stream | None:
        return CachedStream(self, batch) if self.causal else None

    def _choose(self, q: Float[Tensor, "B H N D"]) -> Callable[[Tensor, Tensor, Tensor, float, bool], Tensor]:
        if q.device.type == "cpu":
            self.kernel = "torch flash, CPU"
            return cpu_flash
        if self.impl != "torch" and importlib.util.find_spec("flash_attn") is not None:
            self.kernel = "flash-attn"
            return package_flash
        self.kernel = "torch flash, CUDA"
        return cuda_flash


def widened(x: Float[Tensor, "*rows D"], width: int) -> Float[Tensor, "*rows width"]:
    """Zero-pad the last axis to `width`; return x itself if no padding is needed, since F.pad would copy it."""
    return x if x.shape[-1] == width else F.pad(x, (0, width - x.shape[-1]))


def cpu_flash(q: Tensor, k: Tensor, v: Tensor, scale: float, causal: bool) -> Tensor:
    """torch's CPU flash kernel for q (B, H, N, D) and k, v with H or fewer heads."""
    if causal and 1 < q.shape[2] < k.shape[2]:
        return _PastAndPresent.apply(q, k, v, scale)  # type: ignore[return-value]
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        return F.scaled_dot_product_attention(
            q, k, v, scale=scale, is_causal=causal and q.shape[2] > 1, enable_gqa=q.shape[1] != k.shape[1]
        )


def cuda_flash(q: Tensor, k: Tensor, v: Tensor, scale: float, causal: bool) -> Tensor:
    """torch's CUDA flash kernel for q (B, H, N, D) and k, v with H or fewer heads."""
    from torch.nn.attention.bias import causal_lower_right  # slow import: loads torch's compiler, two seconds

    bias = causal_lower_right(q.shape[2], k.shape[2]) if causal and 1 < q.shape[2] < k.shape[2] else None
    grouped = q.shape[1] != k.shape[1]
    if grouped and bias is not None:  # with a bias, the kernel needs equal numbers of heads
        k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        square, shares = causal and bias is None and q.shape[2] > 1, grouped and bias is None
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale, is_causal=square, enable_gqa=shares)


def package_flash(q: Tensor, k: Tensor, v: Tensor, scale: float, causal: bool) -> Tensor:
    """The flash-attn package; it takes (B, N, H, D) and aligns its causal mask to the bottom right."""
    function = importlib.import_module("flash_attn").flash_attn_func
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return function(q, k, v, softmax_scale=scale, causal=causal).transpose(1, 2)


class _PastAndPresent(torch.autograd.Function):
    """Causal attention of the last N of M positions with torch's CPU kernel: two calls, merged.

    Backward needs no gradient of the merge: given the whole row's output and log-sum-exp, the flash backward of each
    part returns that part's exact gradients.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        op = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        past = k.shape[2] - q.shape[2]
        out_past, lse_past = op(q, k[:, :, :past], v[:, :, :past], 0.0, False, scale=scale)
        out, lse = op(q, k[:, :, past:], v[:, :, past:], 0.0, True, scale=scale)
        both = torch.logaddexp(lse_past, lse)
        out, out_past = out.to(lse.dtype), out_past.to(lse.dtype)
        out.mul_((lse - both).exp().unsqueeze(-1)).addcmul_(out_past, (lse_past - both).exp().unsqueeze(-1))
        out = out.to(q.dtype)
        ctx.save_for_backward(q, k, v, out, both)
        ctx.scale = scale
        return out

    @staticmethod
    @first_order
    def backward(ctx: Any, saved: tuple[Tensor, ...], *grads: Tensor) -> Gradients:
        op = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
        q, k, v, out, lse = saved
        past = k.shape[2] - q.shape[2]
        parts = [
            op(grads[0], q, k[:, :, part], v[:, :, part], out, lse, 0.0, causal, scale=ctx.scale)
            for part, causal in ((slice(None, past), False), (slice(past, None), True))
        ]
        (dq_past, dk_past, dv_past), (dq, dk, dv) = parts
        return dq_past + dq, torch.cat((dk_past, dk), dim=2), torch.cat((dv_past, dv), dim=2), None
