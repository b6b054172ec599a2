"""Exact softmax attention that never stores its scores.

Dao 2023, FlashAttention-2, https://arxiv.org/abs/2307.08691. `impl="flash-attn"` is the authors' own
package (CUDA, half precision), `impl="torch"` torch's flash kernel for CPU or CUDA, and `impl="auto"` the
first of the two that runs. Not taken over: dropout, soft-capping, windows.

torch aligns its causal mask to the top left. Where N != M, the keys before the first query and the keys
beside the queries are therefore two calls on the CPU, merged by their log-sum-exp; on CUDA torch's
lower-right bias does it.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from attentions.base import Attention, Problem, Stream, require
from attentions.cache import CachedStream
from attentions.derivatives import Gradients, first_order

IMPLEMENTATIONS = ("auto", "torch", "flash-attn")


class Flash(Attention):
    """FlashAttention; setting `impl` is "auto", "torch" or "flash-attn"."""

    paper = "https://arxiv.org/abs/2307.08691"
    exact = True
    claimed_time = "n^2"

    def __init__(self, heads: int, head_dim: int, *, impl: str = "auto", **shape: Any) -> None:
        super().__init__(heads, head_dim, **shape)
        require(impl in IMPLEMENTATIONS, "impl", impl, f"one of {', '.join(IMPLEMENTATIONS)}")
        self.impl = impl
        self.kernel = ""

    def forward(
        self,
        q: Float[Tensor, "B H N D"],
        k: Float[Tensor, "B G M D"],
        v: Float[Tensor, "B G M E"],
        *,
        first: Int[Tensor, " B"] | None = None,
    ) -> Float[Tensor, "B H N E"]:
        if first is not None:
            return by_row(self, q, k, v, first)
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
            return "flash kernels on CUDA take float16 and bfloat16 alone"
        if problem.device.type not in ("cpu", "cuda"):
            return f"torch has no flash kernel for {problem.device.type}"
        if problem.device.type == "cuda" and max(problem.head_dim, problem.value_dim) > 256:
            return "flash kernels on CUDA take heads of up to 256"
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
    """x with zeros behind each row, and x itself where there is no need: padding by nothing is a copy."""
    return x if x.shape[-1] == width else F.pad(x, (0, width - x.shape[-1]))


def by_row(
    attention: Attention,
    q: Float[Tensor, "B H N D"],
    k: Float[Tensor, "B G M D"],
    v: Float[Tensor, "B G M E"],
    first: Int[Tensor, " B"],
) -> Float[Tensor, "B H N E"]:
    """Left-padded rows one by one, each without its padding; zeros for the padded queries."""
    before = k.shape[2] - q.shape[2]
    rows = []
    for b, real in enumerate(first.tolist()):
        keys, start = slice(b, b + 1), max(real - before, 0)
        out = attention(q[keys, :, start:], k[keys, :, real:], v[keys, :, real:])
        rows.append(F.pad(out, (0, 0, start, 0)) if start else out)
    return torch.cat(rows)


def cpu_flash(q: Tensor, k: Tensor, v: Tensor, scale: float, causal: bool) -> Tensor:
    """torch's CPU flash kernel, (B, H, N, D) with as many or fewer key heads."""
    if causal and 1 < q.shape[2] < k.shape[2]:
        return _PastAndPresent.apply(q, k, v, scale)  # type: ignore[return-value]
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        return F.scaled_dot_product_attention(
            q, k, v, scale=scale, is_causal=causal and q.shape[2] > 1, enable_gqa=q.shape[1] != k.shape[1]
        )


def cuda_flash(q: Tensor, k: Tensor, v: Tensor, scale: float, causal: bool) -> Tensor:
    """torch's CUDA flash kernel, (B, H, N, D) with as many or fewer key heads."""
    from torch.nn.attention.bias import causal_lower_right  # loads torch's compiler, two seconds

    bias = causal_lower_right(q.shape[2], k.shape[2]) if causal and 1 < q.shape[2] < k.shape[2] else None
    grouped = q.shape[1] != k.shape[1]
    if grouped and bias is not None:  # the bias takes equal heads only
        k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        square, shares = causal and bias is None and q.shape[2] > 1, grouped and bias is None
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale, is_causal=square, enable_gqa=shares)


def package_flash(q: Tensor, k: Tensor, v: Tensor, scale: float, causal: bool) -> Tensor:
    """The flash-attn package; it wants (B, N, H, D) and aligns its causal mask to the bottom right."""
    function = importlib.import_module("flash_attn").flash_attn_func
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return function(q, k, v, softmax_scale=scale, causal=causal).transpose(1, 2)


class _PastAndPresent(torch.autograd.Function):
    """Causal attention of the last N of M positions by torch's CPU kernel: two calls and their merge.

    Backward needs no gradient of the merge: with the whole row's output and log-sum-exp, the flash
    backward of each part gives that part's exact gradients.
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
