"""The interface that every attention in this project implements.

Axis letters, everywhere in the project:

    B batch    H query heads    G key/value heads (H is a multiple of G)
    N queries  M keys           D query/key dimension    E value dimension
    R selected query rows       T tokens given to a stream at once

Queries are the last N of the M positions: query i stands at position M - N + i. (torch's `is_causal`
aligns the other way, to the top left.)
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from attentions.reference import causal_pairs, softmax_attention

# Relative error (Frobenius norm of the difference over that of the naive output) that plain softmax
# attention makes in each precision with room for a factor of two, after flash-attention's own tests.
ROUNDING: Mapping[torch.dtype, float] = MappingProxyType(
    {torch.float64: 1e-11, torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
)


@dataclass(frozen=True)
class Problem:
    """The sizes and circumstances of one call, enough to say whether and at what cost it can run."""

    batch: int
    heads: int
    kv_heads: int
    queries: int
    keys: int
    head_dim: int
    value_dim: int
    dtype: torch.dtype
    device: torch.device
    causal: bool
    backward: bool


@dataclass(frozen=True)
class Cost:
    """What one forward call costs, counted and not timed.

    `flops`: floating-point operations that the kernel executes, a multiply-add as two.
    `comparisons`: upper bound on the query-key scores that enter the output, over all heads and the
    batch; equal to their number where that does not depend on data.
    `state_bytes`: what decoding must keep after the last key.
    `past_flops`: what part of `flops` keys before the queries cost by themselves, which a stream has already spent.
    """

    flops: int
    comparisons: int
    state_bytes: int
    past_flops: int = 0


class Stream(ABC):
    """Decoding: attention over a sequence that arrives in pieces, with whatever state that needs."""

    @abstractmethod
    def extend(
        self, q: Float[Tensor, "B H T D"], k: Float[Tensor, "B G T D"], v: Float[Tensor, "B G T E"]
    ) -> Float[Tensor, "B H T E"]:
        """Append T >= 1 tokens and return their rows; any split of a sequence gives `forward`'s rows."""

    @abstractmethod
    def reorder(self, index: Int[Tensor, " B"]) -> None:
        """Keep the sequences that `index` names, in its order (beam search)."""

    @property
    @abstractmethod
    def state_bytes(self) -> int:
        """Bytes that the state holds now."""


class Attention(nn.Module, ABC):
    """An attention of fixed settings. Subclasses are final and must write `forward` alone.

    Class facts: `paper` a link; `approximates` what the output should be close to ("softmax",
    "shared-qk softmax", or None for a method judged by tasks only); `exact` whether it equals that up to
    rounding; `claimed_time` the growth its authors claim ("n", "n log n", "n^2"); `causality` "strict"
    (nothing after t changes the first t rows) or "selection" (later tokens change which earlier keys are
    chosen); `tolerance` dtype -> relative error allowed against its own `naive`; `claimed_components` by name of a
    component the share of the time and the exponent over n that its authors claim.

    Raises ValueError for heads that are not a multiple of kv_heads and for sizes below one.
    """

    paper: ClassVar[str]
    approximates: ClassVar[Literal["softmax", "shared-qk softmax"] | None] = "softmax"
    exact: ClassVar[bool] = False
    claimed_time: ClassVar[str]
    causality: ClassVar[Literal["strict", "selection"]] = "strict"
    tolerance: ClassVar[Mapping[torch.dtype, float]] = ROUNDING
    claimed_components: ClassVar[Mapping[str, tuple[float, float]]] = MappingProxyType({})

    def __init__(
        self,
        heads: int,
        head_dim: int,
        *,
        kv_heads: int | None = None,
        value_dim: int | None = None,
        causal: bool = True,
        scale: float | None = None,
        max_len: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.heads = heads
        self.head_dim = head_dim
        self.kv_heads = heads if kv_heads is None else kv_heads
        self.value_dim = head_dim if value_dim is None else value_dim
        for name in ("heads", "head_dim", "kv_heads", "value_dim"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "an integer of at least 1")
        require(heads % self.kv_heads == 0, "kv_heads", self.kv_heads, f"a divisor of heads={heads}")
        require(max_len is None or max_len >= 1, "max_len", max_len, "None or an integer of at least 1")
        self.causal = causal
        self.scale = head_dim**-0.5 if scale is None else scale
        self.max_len = max_len
        self.seed = seed

    @abstractmethod
    def forward(
        self,
        q: Float[Tensor, "B H N D"],
        k: Float[Tensor, "B G M D"],
        v: Float[Tensor, "B G M E"],
        *,
        first: Int[Tensor, " B"] | None = None,
    ) -> Float[Tensor, "B H N E"]:
        """Attention output in q's dtype and on q's device; differentiable; inputs are left untouched.

        `first` holds the first real position of each left-padded row: earlier keys are never attended,
        and earlier queries give zeros. In eval mode a call changes no state.
        """

    def naive(
        self,
        q: Float[Tensor, "B H N D"],
        k: Float[Tensor, "B G M D"],
        v: Float[Tensor, "B G M E"],
        *,
        first: Int[Tensor, " B"] | None = None,
        rows: Int[Tensor, " R"] | None = None,
    ) -> Float[Tensor, "B H R E"]:
        """The definition of this method in float64, slow and short, for all query rows or those named."""
        return self.target(q, k, v, first=first, rows=rows)

    def target(
        self,
        q: Float[Tensor, "B H N D"],
        k: Float[Tensor, "B G M D"],
        v: Float[Tensor, "B G M E"],
        *,
        first: Int[Tensor, " B"] | None = None,
        rows: Int[Tensor, " R"] | None = None,
    ) -> Float[Tensor, "B H R E"]:
        """What this method approximates, in float64: softmax attention unless `approximates` says otherwise."""
        pairs = causal_pairs(q.shape[2], k.shape[2], causal=self.causal, first=first, rows=rows, device=q.device)
        return softmax_attention(q, k, v, pairs, self.scale, rows=rows)

    def prepare(self, q: Float[Tensor, "B H N D"], k: Float[Tensor, "B G M D"], v: Float[Tensor, "B G M E"]) -> None:
        """Learn codebooks or hash functions from a calibration sample; never from what is attended.

        What is learnt goes to parameters or buffers of unchanged shapes, so that `state_dict` carries it.
        """
        del q, k, v

    def comparisons(self, q: Float[Tensor, "B H N D"], k: Float[Tensor, "B G M D"]) -> Int[Tensor, "B H"]:
        """Number of query-key scores that enter the output on this input, by sequence and head."""
        scores = attended_pairs(q.shape[2], k.shape[2], self.causal)
        return torch.full(q.shape[:2], scores, dtype=torch.int64, device=q.device)

    def why_not(self, problem: Problem) -> str:
        """Empty when the problem can run, else one plain sentence that says why it cannot."""
        if problem.queries > problem.keys:
            return f"queries are the last of the keys' positions, so {problem.queries} queries need as many keys"
        if problem.dtype not in self.tolerance:
            names = ", ".join(str(dtype).removeprefix("torch.") for dtype in self.tolerance)
            return f"dtype {str(problem.dtype).removeprefix('torch.')} is not among {names}"
        return ""

    def cost(self, problem: Problem) -> Cost:
        """Softmax attention over every pair: 2·D to score a pair and 2·E to add its value.

        The state is the whole cache, M·G·(D + E) values.
        """
        pairs = attended_pairs(problem.queries, problem.keys, problem.causal) * problem.batch * problem.heads
        values = problem.batch * problem.keys * problem.kv_heads * (problem.head_dim + problem.value_dim)
        return Cost(
            flops=2 * pairs * (problem.head_dim + problem.value_dim),
            comparisons=pairs,
            state_bytes=values * problem.dtype.itemsize,
        )

    def components(
        self, q: Float[Tensor, "B H N D"], k: Float[Tensor, "B G M D"], v: Float[Tensor, "B G M E"]
    ) -> Mapping[str, Callable[[], object]]:
        """The stages of `forward` on these inputs, by name and in order, each ready to run alone.

        The last gives the output. Empty where a method has no stages worth telling apart.
        """
        del q, k, v
        return {}

    def stream(self, batch: int) -> Stream | None:
        """A fresh decoding state for `batch` sequences, or None where the method cannot decode."""
        del batch
        return None

    def block(self, model_dim: int) -> nn.Module:
        """The layer around this attention, x (B, N, model_dim) to the same shape.

        A block has `forward(x, *, first=None)` and `naive(x, *, first=None, rows=None)`.
        """
        from attentions.layer import AttentionLayer  # the layer needs this class

        return AttentionLayer(model_dim, self)


def require(condition: bool, name: str, value: object, allowed: str) -> None:
    """Raise ValueError that names a setting, its value and what is allowed, unless `condition` holds."""
    if not condition:
        raise ValueError(f"{name}={value!r} is not allowed: it must be {allowed}")


def attended_pairs(queries: int, keys: int, causal: bool) -> int:
    """Query-key pairs of one head: all of them, or those at or before each query's own position."""
    return queries * keys - queries * (queries - 1) // 2 if causal else queries * keys


def problem_of(
    attention: Attention, q: Float[Tensor, "B H N D"], k: Float[Tensor, "B G M D"], *, backward: bool = False
) -> Problem:
    """The problem that a call of `attention` on q and k poses."""
    return Problem(
        batch=q.shape[0],
        heads=attention.heads,
        kv_heads=attention.kv_heads,
        queries=q.shape[2],
        keys=k.shape[2],
        head_dim=attention.head_dim,
        value_dim=attention.value_dim,
        dtype=q.dtype,
        device=q.device,
        causal=attention.causal,
        backward=backward,
    )
