"""HyperAttention (https://arxiv.org/abs/2310.05869): exact attention in sorted blocks, uniform sampling elsewhere.

Queries and keys are sorted separately by their hash codes and cut into the same number of blocks. A query attends to
its own block exactly and to `sample_size` keys drawn uniformly from all n. Each sampled key has weight n/m, or zero if
it is in the query's own block, which makes the normaliser unbiased. Causal attention halves the sequence recursively
and does this for each lower-left square.

Differences from the authors' code: it lets zero-padded keys count, counts own-block samples twice, and gives merge
weights no gradient in half precision. Here blocks of uneven length differ by one key, and the own block and the sample
are one softmax, so nothing needs to be merged outside the causal recursion.

Not implemented: sampling by the norms of the values, which the paper analyses but its code does not do.

Memory beyond the output: codes; the index and bias of one level's keys, 12·(1 + sample_size / block_size) bytes per key
and head; and one slab of gathered rows.
"""

from __future__ import annotations

import math
import numbers
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from hyper_attn.angular_lsh import AngularLSH
from hyper_attn.selection import Selection
from hyper_attn.state import Drawn
from hyper_attn.utils import Leaves, RecursionLevel, attend, attend_backward, in_leaves, out_of_leaves, squares


class HyperAttention(Drawn):
    """Attention on (B, H, N, D) with keys and values (B, G, M, D), G a divisor of H, with the authors' signature.

        `input_dim`: D.
        `lsh_num_projs`: signs per code.
        `block_size`: keys per block.
        `sample_size`: keys drawn for each head (and each square of the causal recursion). 0: none.
        `min_seq_len`: attention is exact for fewer keys.
        `cuda`: has no effect; kernels follow the tensors' device.
        `seed`: determines the draws; it is part of the state.

    Raises ValueError for settings below one, for `sample_size` below zero, and for settings of the wrong type.
    """

    added: ClassVar[tuple[str, ...]] = ("_extra_state",)

    def __init__(
        self,
        input_dim: int = 64,
        lsh_num_projs: int = 7,
        block_size: int = 256,
        sample_size: int = 256,
        min_seq_len: int = 4096,
        cuda: bool = False,
        *,
        seed: int = 0,
    ) -> None:
        super().__init__()
        sizes = {"input_dim": input_dim, "block_size": block_size, "min_seq_len": min_seq_len}
        for name, value, least in (*((*size, 1) for size in sizes.items()), ("sample_size", sample_size, 0)):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"{name}={value!r} is not allowed: it must be an integer of at least {least}")
        if isinstance(seed, bool) or not isinstance(seed, int):
            raise ValueError(f"seed={seed!r} is not allowed: it must be an integer")
        if not isinstance(cuda, bool):
            raise ValueError(f"cuda={cuda!r} is not allowed: it must be True or False")
        self.lsh = AngularLSH(input_dim, lsh_num_projs, seed=seed)
        self.block_size, self.sample_size, self.min_seq_len, self.seed = block_size, sample_size, min_seq_len, seed

    def get_extra_state(self) -> Int[Tensor, ""]:
        """Return the seed, which determines the sampled keys."""
        return torch.tensor(self.seed)

    def set_extra_state(self, state: Int[Tensor, ""]) -> None:
        """Use another module's seed."""
        self.seed = int(state)

    def forward(
        self,
        query: Float[Tensor, "B H N D"],
        key: Float[Tensor, "B G M D"],
        value: Float[Tensor, "B G M E"],
        scale: float | None = None,
        causal: bool = False,
        return_lse: bool = False,
    ) -> Float[Tensor, "B H N E"] | tuple[Float[Tensor, "B H N E"], Float[Tensor, "B H N 1"]]:
        """Return the attention output and, with `return_lse`, the log of the estimated normaliser (float32 or wider).

        Causal queries are the last N of the M positions. Half precision is computed in float32. Raises ValueError for
        tensors that do not fit the settings or each other, for a scale that is not a number, if there are no keys, if
        heads are not a multiple of the key heads, and for more causal queries than keys.
        """
        q, k, v = query, key, value
        self._check(q, k, v, causal)
        if isinstance(scale, Tensor) and scale.ndim == 0 and not scale.requires_grad:
            scale = scale.item()
        number = isinstance(scale, numbers.Real) and not isinstance(scale, bool) and math.isfinite(scale)
        if scale is not None and not number:
            raise ValueError(f"scale={scale!r} is not allowed: it must be None or a finite number, without a gradient")
        for name, flag in (("causal", causal), ("return_lse", return_lse)):
            if not isinstance(flag, bool):
                raise ValueError(f"{name}={flag!r} is not allowed: it must be True or False")
        if not q.shape[:3].numel():
            out = q.new_zeros(*q.shape[:3], v.shape[3]) + 0 * (q.sum() + k.sum() + v.sum())
            return (
                (out, out.to(torch.promote_types(out.dtype, torch.float32)).sum(-1, keepdim=True))
                if return_lse
                else out
            )
        scale = q.shape[-1] ** -0.5 if scale is None else scale
        selection, leaves = self.select(q, k, causal)
        dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
        width = max(q.shape[-1], v.shape[-1])  # kernels need equal widths; zeros change no score
        wide = (
            x.to(dtype) if x.shape[-1] == width else F.pad(x.to(dtype), (0, width - x.shape[-1])) for x in (q, k, v)
        )
        out, lse = _Attend.apply(*wide, scale, selection, leaves)  # type: ignore[misc]
        out = out[..., : v.shape[-1]].to(q.dtype)
        return (out, lse.unsqueeze(-1)) if return_lse else out

    def _check(self, q: Tensor, k: Tensor, v: Tensor, causal: bool) -> None:
        """Raise ValueError for inputs that kernels and indexing would misread."""
        given = {"query": q, "key": k, "value": v}
        for name, x in given.items():
            if not isinstance(x, Tensor) or x.layout is not torch.strided:
                kind = x.layout if isinstance(x, Tensor) else type(x).__name__
                raise ValueError(f"{name} of kind {kind} is not allowed: it must be a dense tensor")
        mixed = torch.amp.is_autocast_available(q.device.type) and torch.is_autocast_enabled(q.device.type)
        for name, x in given.items():
            if x.ndim != 4 or not x.is_floating_point() or x.device != q.device or (x.dtype != q.dtype and not mixed):
                raise ValueError(
                    f"{name} of shape {tuple(x.shape)}, {x.dtype} on {x.device}, is not allowed: it must have four "
                    f"axes and floating-point numbers of the query's dtype and device, {q.dtype} on {q.device}"
                )
        (batch, heads), (key_heads, keys), width = q.shape[:2], k.shape[1:3], self.lsh.projections.shape[1]
        for name, x, wanted in (
            ("query", q, (batch, heads, q.shape[2], width)),
            ("key", k, (batch, key_heads, keys, width)),
            ("value", v, (batch, key_heads, keys, v.shape[3])),
        ):
            if x.shape != wanted:
                raise ValueError(f"{name} of shape {tuple(x.shape)} is not allowed: it must be {wanted}")
        if not key_heads or heads % key_heads:
            raise ValueError(f"heads={heads} is not allowed: it must be a multiple of {key_heads} key heads")
        if causal and q.shape[2] > keys:
            raise ValueError(f"queries={q.shape[2]} is not allowed: causal attention allows at most {keys}")
        if q.shape[2] and not keys:
            raise ValueError("keys=0 is not allowed: queries need at least one key")

    def select(
        self, q: Float[Tensor, "B H N D"], k: Float[Tensor, "B G M D"], causal: bool
    ) -> tuple[Selection, Leaves | None]:
        """Select the keys each query attends to: squares with their codes and draws, and exact leaves if causal."""
        levels, leaves = self.divide(q.shape[2], k.shape[2], causal)
        return Selection(levels, self.draws(levels, q.shape[1]), self.codes(q, levels), self.codes(k, levels)), leaves

    def divide(self, queries: int, keys: int, causal: bool) -> tuple[list[RecursionLevel], Leaves | None]:
        """Divide a problem into squares and, if causal, exact leaves, with these settings."""
        return squares(queries, keys, block_size=self.block_size, min_seq_len=self.min_seq_len, causal=causal)

    def codes(self, x: Float[Tensor, "B H N D"], levels: list[RecursionLevel]) -> Int[Tensor, "B H N"]:
        """Hash codes of queries or keys; zeros if every square is one block and nothing is sorted."""
        if any(level.blocks > 1 for level in levels):
            return self.lsh(x)
        return torch.zeros(x.shape[:3], dtype=torch.long, device=x.device)

    def draws(self, levels: list[RecursionLevel], heads: int) -> list[Int[Tensor, "H _ sample"]]:
        """For each level, the sampled keys of each head and square, as ranks in code order."""
        generator = torch.Generator().manual_seed(self.seed)
        shapes = [(heads, len(level.squares), self.sample_size) for level in levels]
        uniform = [torch.rand(shape, dtype=torch.float64, generator=generator) for shape in shapes]
        return [(u * level.keys).long() for u, level in zip(uniform, levels, strict=True)]


class _Attend(torch.autograd.Function):
    """Processes leaves and squares one after another, merging each into the output by log-sum-exp.

    Backward rebuilds the tables and needs no gradient of the merge (see `attend_backward`). The output has one extra
    row, which receives the results of empty query slots.
    """

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, scale: float, selection: Selection, leaves: Leaves | None
    ) -> tuple[Tensor, Tensor]:
        B, H, N, D = q.shape
        out, lse = q.new_empty(B * H * N + 1, D), q.new_empty(B * H * N + 1)
        ctx.scale, ctx.selection, ctx.leaves = scale, selection, leaves
        if leaves is not None:
            _forward_leaves(q, k, v, scale, leaves, out, lse)
        flat = [x.reshape(-1, D) for x in (q, k, v)]
        for level, table in enumerate(selection.tables(q.dtype)):
            for slab in table.slabs(D):
                queries = take(flat[0], slab.query.clamp(max=B * H * N - 1))
                part = attend(queries, take(flat[1], slab.key), take(flat[2], slab.key), slab.bias, scale, False)
                _merge(out, lse, slab.query.flatten(), *part, fresh=leaves is None and level == 0)
        out, lse = out[:-1].view(B, H, N, D), lse[:-1].view(B, H, N)
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.set_materialize_grads(False)
        return out, lse

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, Tensor, Tensor, None, None, None]:
        found = _Slope.apply(*grads, *ctx.saved_tensors, ctx.scale, ctx.selection, ctx.leaves)
        return *found, None, None, None  # type: ignore[misc]


class _Slope(torch.autograd.Function):
    """Gradients of q, k and v; second derivatives raise an error."""

    @staticmethod
    def forward(
        ctx: Any,
        grad: Tensor | None,
        grad_lse: Tensor | None,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        out: Tensor,
        lse: Tensor,
        scale: float,
        selection: Selection,
        leaves: Leaves | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        grad = torch.zeros_like(out) if grad is None else grad
        B, H, N, D = q.shape
        of_keys, of_values = (x.new_zeros(x.shape[:3].numel(), D) for x in (k, v))
        wholes = q.new_zeros(B * H * N + 1, D), of_keys, of_values
        if leaves is not None:
            _backward_leaves((q, k, v, out, lse), scale, leaves, grad, grad_lse, wholes)
        flat = [x.reshape(-1, D) for x in (q, k, v, grad, out)]
        lse = F.pad(lse.flatten(), (0, 1), value=torch.inf)  # exp(score - inf): empty slots have no weight
        for table in selection.tables(q.dtype):
            for slab in table.slabs(D):
                real = slab.query.clamp(max=B * H * N - 1)
                queries, upstream, outs = (take(flat[i], real) for i in (0, 3, 4))
                keys, values = (take(flat[i], slab.key) for i in (1, 2))
                of_lse = None if grad_lse is None else grad_lse.flatten()[real].unsqueeze(1)
                sums = lse[slab.query].unsqueeze(1)
                parts = attend_backward(upstream, of_lse, queries, keys, values, outs, sums, slab.bias, scale, False)
                for whole, rows, part in zip(wholes, (slab.query, slab.key, slab.key), parts, strict=True):
                    whole.scatter_add_(0, rows.reshape(-1, 1).expand(-1, D), part.reshape(-1, D))
        return wholes[0][:-1].view(q.shape), wholes[1].view(k.shape), wholes[2].view(v.shape)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> None:
        raise RuntimeError("HyperAttention has no second derivative: its gradient cannot be differentiated again")


def _forward_leaves(q: Tensor, k: Tensor, v: Tensor, scale: float, leaves: Leaves, out: Tensor, lse: Tensor) -> None:
    (B, H, N, D), front = q.shape, k.shape[2] - q.shape[2] - leaves.start
    keys, values = (in_leaves(x[:, :, leaves.start :], 0, leaves) for x in (k, v))
    found, sums = attend(in_leaves(q, front, leaves), keys, values, None, scale, True)
    out[:-1].view(B, H, N, D).copy_(out_of_leaves(found, B, front, N))
    lse[:-1].view(B, H, N, 1).copy_(out_of_leaves(sums.unsqueeze(-1), B, front, N))
    out[-1], lse[-1] = 0.0, 0.0


def _backward_leaves(
    saved: tuple[Tensor, ...],
    scale: float,
    leaves: Leaves,
    grad: Tensor,
    grad_lse: Tensor | None,
    wholes: tuple[Tensor, Tensor, Tensor],
) -> None:
    (q, k, v, out, lse), front = saved, saved[1].shape[2] - saved[0].shape[2] - leaves.start
    of_lse = None if grad_lse is None else in_leaves(grad_lse.unsqueeze(-1), front, leaves)[..., 0]
    queries, upstream, outs = (in_leaves(x, front, leaves) for x in (q, grad, out))
    keys, values = (in_leaves(x[:, :, leaves.start :], 0, leaves) for x in (k, v))
    sums = in_leaves(lse.unsqueeze(-1), front, leaves)[..., 0]
    parts = attend_backward(upstream, of_lse, queries, keys, values, outs, sums, None, scale, True)
    wholes[0][:-1].view(q.shape).copy_(out_of_leaves(parts[0], len(q), front, q.shape[2]))
    for whole, part in zip(wholes[1:], parts[1:], strict=True):
        there = whole.view(k.shape)[:, :, leaves.start :]
        there.copy_(out_of_leaves(part, len(k), 0, there.shape[2]))


def take(x: Float[Tensor, "rows D"], index: Int[Tensor, "P S"]) -> Float[Tensor, "P 1 S D"]:
    """Select rows by index, as problems with one head."""
    return x.index_select(0, index.flatten()).view(len(index), 1, -1, x.shape[1])


def _merge(out: Tensor, lse: Tensor, rows: Tensor, part: Tensor, sums: Tensor, *, fresh: bool) -> None:
    """Write a part's rows into the output, weighted by log-sum-exp unless they are the first there."""
    part, sums = part.reshape(-1, part.shape[-1]), sums.flatten()
    if not fresh:
        before = lse[rows]
        both = torch.logaddexp(before, sums)
        part = part * (sums - both).exp().unsqueeze(-1)
        part.addcmul_(out.index_select(0, rows), (before - both).exp().unsqueeze(-1))
        sums = both
    out.index_copy_(0, rows, part)
    lse.index_copy_(0, rows, sums)
