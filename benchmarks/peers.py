"""Attentions of other packages behind this project's interface, so that a sweep measures them like its own.

    {name: "benchmarks.peers:ReformerPytorch", hashes: 4, chunk: 64}     at level kernel
    {name: "benchmarks.peers:Mambapy"}                                   at level layer

Neither package is a dependency. A case is reported as `unsupported` where its package is not installed.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Unpack

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from attentions.base import Attention
from attentions.common.reference import causal_pairs, query_positions, softmax_attention
from attentions.common.settings import Shape, require
from attentions.recurrent.mamba_block import MambaBlock
from attentions.reformer import Reformer, unit

if TYPE_CHECKING:
    from attentions.common.problem import Problem

ROUNDING = 2e-5  # of sums in float32, as for this project's own methods
# reformer-pytorch masks a position's own key by adding -5e4, whose spacing in float32 is 0.004: rows that see no other
# key are off by up to half of that.
ROUNDED_MASK = 2e-3


def missing(package: str) -> str:
    """Return "" if a package is installed, otherwise a sentence that says that it is not."""
    module = package.replace("-", "_")
    return "" if importlib.util.find_spec(module) else f"{package} is not installed; pip install {package} adds it"


class ReformerPytorch(Attention):
    """`LSHAttention` of lucidrains' reformer-pytorch with its defaults: `hashes` rounds in chunks of `chunk`.

    Its hash is drawn anew in each call; here the draw is fixed by the seed. All heads share it. Unlike `reformer`, the
    first chunk of a round also attends to the last chunk of the round before (of the last round, for the first one).
    """

    paper = "https://github.com/lucidrains/reformer-pytorch"
    approximates = "shared-qk softmax"
    accepts_padding = False
    claimed_time = "n log n"
    causality = "selection"
    tolerance: ClassVar[Mapping[torch.dtype, float]] = {torch.float32: ROUNDED_MASK}

    def __init__(self, heads: int, head_dim: int, *, hashes: int = 4, chunk: int = 64, **shape: Unpack[Shape]) -> None:
        super().__init__(heads, head_dim, **shape)
        require(hashes >= 1, "hashes", hashes, "an integer of at least 1")
        require(chunk >= 1, "chunk", chunk, "an integer of at least 1")
        self.hashes, self.chunk = hashes, chunk

    def why_not(self, problem: Problem) -> str:
        if reason := missing("reformer-pytorch") or super().why_not(problem):
            return reason
        if problem.heads != problem.kv_heads:
            return "reformer-pytorch shares queries and keys, so it needs as many key heads as query heads"
        if problem.queries != problem.keys:
            return "reformer-pytorch cannot decode"
        if self.scale != problem.head_dim**-0.5:
            return "reformer-pytorch has one scale, head_dim ** -0.5"
        step = 2 * self.chunk
        return f"reformer-pytorch needs a multiple of {step} tokens" if problem.keys % step else ""

    def forward(
        self,
        q: Float[Tensor, "B H N D"],
        k: Float[Tensor, "B G M D"],
        v: Float[Tensor, "B G M E"],
        *,
        first: Int[Tensor, " B"] | None = None,
    ) -> Float[Tensor, "B H N E"]:
        del k, first
        peer = self._peer()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return peer(q.flatten(0, 1), v.flatten(0, 1))[0].unflatten(0, q.shape[:2])

    def naive(
        self,
        q: Float[Tensor, "B H N D"],
        k: Float[Tensor, "B G M D"],
        v: Float[Tensor, "B G M E"],
        *,
        first: Int[Tensor, " B"] | None = None,
        rows: Int[Tensor, " R"] | None = None,
    ) -> Float[Tensor, "B H R E"]:
        assert first is None, "`accepts_padding` is off"
        count = self._found(q.float(), rows)
        return softmax_attention(q, unit(q.double()), v, count > 0, self.scale, rows=rows, weight=count)

    def target(
        self,
        q: Float[Tensor, "B H N D"],
        k: Float[Tensor, "B G M D"],
        v: Float[Tensor, "B G M E"],
        *,
        first: Int[Tensor, " B"] | None = None,
        rows: Int[Tensor, " R"] | None = None,
    ) -> Float[Tensor, "B H R E"]:
        return Reformer(self.heads, self.head_dim, causal=self.causal).target(q, k, v, first=first, rows=rows)

    def _peer(self) -> Any:
        made = importlib.import_module("reformer_pytorch").LSHAttention
        return made(bucket_size=self.chunk, n_hashes=self.hashes, causal=self.causal)

    def _found(self, q: Float[Tensor, "B H N D"], rows: Int[Tensor, " R"] | None) -> Int[Tensor, "B H R N"]:
        """Number of times that each key is found by each query, given the buckets that the package draws."""
        n, chunk, chosen = q.shape[2], self.chunk, query_positions(q.shape[2], q.shape[2], rows, q.device)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            buckets = self._peer().hash_vectors(n // chunk, q.flatten(0, 1))
        order = buckets.argsort(dim=-1, stable=True) % n  # rounds stand one after another, each with its own buckets
        before = order.unflatten(-1, (-1, chunk)).roll(1, dims=1)
        near = torch.cat([before, order.unflatten(-1, (-1, chunk))], dim=-1).flatten(1, 2)
        found = torch.zeros(len(order), len(chosen), n, dtype=torch.int32, device=q.device)
        for rank in range(self.hashes):
            at = order[:, rank * n : (rank + 1) * n].argsort(dim=-1)[:, chosen] // chunk + rank * (n // chunk)
            keys = (at[..., None] * 2 * chunk + torch.arange(2 * chunk, device=q.device)).flatten(1)
            keys = near.gather(1, keys).unflatten(1, (len(chosen), -1))
            found.scatter_add_(2, keys, torch.ones_like(keys, dtype=torch.int32))
        pairs = causal_pairs(n, n, causal=self.causal, first=None, rows=rows, device=q.device)[0, 0]
        own = chosen[:, None] == torch.arange(n, device=q.device)
        found *= pairs & ~own
        return (found + ((found == 0).all(-1, keepdim=True) & own)).unflatten(0, q.shape[:2])


class Mambapy(Attention):
    """The Mamba block of mambapy; it has no kernel of its own, so it is measured at level layer.

    The definition is that of `MambaBlock` with the same weights.
    """

    paper = "https://github.com/alxndrTL/mamba.py"
    approximates = None
    accepts_padding = False
    claimed_time = "n"
    tolerance: ClassVar[Mapping[torch.dtype, float]] = {torch.float32: ROUNDING}

    def why_not(self, problem: Problem) -> str:
        return missing("mambapy") or super().why_not(problem)

    def forward(
        self,
        q: Float[Tensor, "B H N D"],
        k: Float[Tensor, "B G M D"],
        v: Float[Tensor, "B G M E"],
        *,
        first: Int[Tensor, " B"] | None = None,
    ) -> Float[Tensor, "B H N E"]:
        raise NotImplementedError("mambapy has a whole block and no kernel; measure it at level: layer")

    def block(self, model_dim: int) -> nn.Module:
        return MambapyBlock(model_dim, seed=self.seed)


class MambapyBlock(nn.Module):
    """mambapy's block of width `model_dim`, with weights drawn from the seed. Raises ImportError without mambapy."""

    def __init__(self, model_dim: int, *, seed: int = 0) -> None:
        super().__init__()
        mamba = importlib.import_module("mambapy.mamba")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.peer = mamba.MambaBlock(mamba.MambaConfig(d_model=model_dim, n_layers=1))

    def forward(self, x: Float[Tensor, "B N C"], *, first: Int[Tensor, " B"] | None = None) -> Float[Tensor, "B N C"]:
        """Run the block. Raises ValueError for padding, which it does not handle."""
        require(first is None, "first", first, "None: mambapy does not know padding")
        return self.peer(x)

    def naive(
        self,
        x: Float[Tensor, "B N C"],
        *,
        first: Int[Tensor, " B"] | None = None,
        rows: Int[Tensor, " R"] | None = None,
    ) -> Float[Tensor, "B R C"]:
        """Run this project's definition of the block in float64 with the same weights."""
        ours = MambaBlock(x.shape[-1])
        ours.load_state_dict(self.peer.state_dict())
        return ours.naive(x, first=first, rows=rows)
