"""The interface that every attention in this project implements.

Axis letters, used throughout the project:

    B batch    H query heads    G key/value heads (H is a multiple of G)
    N queries  M keys           D query/key dimension    E value dimension
    R selected query rows       T tokens in one piece of a stream

The queries are the last N of the M positions: query i is at position M - N + i. (torch's `is_causal` aligns to the top
left instead.)
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from attentions.common.call import check_call, checked, empty_output
from attentions.common.inputs import (
    one_dtype,
    under_autocast,
    whole_vectors,
    without_padding,
)
from attentions.common.padding import by_row
from attentions.common.problem import Cost, Problem
from attentions.common.reference import causal_pairs, softmax_attention
from attentions.common.settings import checked_size, checked_types, is_integer, is_number, require

if TYPE_CHECKING:
    from attentions.common.stream import Stream

# Relative error (Frobenius norm of the difference divided by that of the naive output) of plain softmax attention in
# each precision, with a margin of a factor of two, as in flash-attention's own tests.
ROUNDING: Mapping[torch.dtype, float] = MappingProxyType(
    {torch.float64: 1e-11, torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
)


class Attention(nn.Module, ABC):
    """Base class of all attentions. Subclasses are final; `forward` is the only method they must implement.

    A call checks its inputs, masks padding and runs `forward` with autocast off. An attention computes in the dtype of
    its inputs, or in the autocast dtype if the inputs differ in dtype.

    Class facts: `paper` a link; `approximates` what the output should be close to ("softmax",
    "shared-qk softmax", or None for a method judged by tasks only); `exact` whether it equals that up to
    rounding; `claimed_time` the growth its authors claim ("n", "n log n", "n^2"); `causality` "strict"
    (nothing after t changes the first t rows) or "selection" (later tokens change which earlier keys are
    chosen); `tolerance` dtype -> relative error allowed against its own `naive`; `claimed_components` by name of a
    component the share of the time and the exponent over n that its authors claim; `accepts_padding` whether `forward`
    handles `first` itself: if not, left-padded rows are run one by one, each without its padding.

        `paper`: a link.
        `approximates`: what the output should be close to: "softmax", "shared-qk softmax", or None for a method that is
            judged by tasks only.
        `exact`: whether the output equals that target up to rounding.
        `claimed_time`: the growth in time that the authors claim: "n", "n log n" or "n^2".
        `causality`: "strict" (no token after t changes the first t rows) or "selection" (later tokens can change which
            earlier keys are selected).
        `tolerance`: maps a dtype to the relative error allowed against the method's own `naive`.
        `claimed_components`: maps the name of a component to the share of the time and the exponent of n that its
            authors claim.

    Raises ValueError if heads is not a multiple of kv_heads, if a size is not an integer of at least one, or if the
    scale is not a finite number.
    """

    kernel: str = ""  # the kernel that the last call ran, set by methods that have several

    paper: ClassVar[str]
    approximates: ClassVar[Literal["softmax", "shared-qk softmax"] | None] = "softmax"
    exact: ClassVar[bool] = False
    accepts_padding: ClassVar[bool] = True
    claimed_time: ClassVar[str]
    causality: ClassVar[Literal["strict", "selection"]] = "strict"
    tolerance: ClassVar[Mapping[torch.dtype, float]] = ROUNDING
    claimed_components: ClassVar[Mapping[str, tuple[float, float]]] = MappingProxyType({})

    @checked_types
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
        sizes = {"heads": heads, "head_dim": head_dim, "kv_heads": kv_heads, "value_dim": value_dim, "max_len": max_len}
        for name, size in sizes.items():
            optional = name not in ("heads", "head_dim")
            allowed = f"{'None or ' if optional else ''}an integer of at least 1"
            require((optional and size is None) or (is_integer(size) and size >= 1), name, size, allowed)
        require(is_integer(seed), "seed", seed, "an integer")
        finite = scale is None or (is_number(scale) and math.isfinite(scale))
        require(finite, "scale", scale, "None or a finite number")
        self.heads = heads
        self.head_dim = head_dim
        self.kv_heads = heads if kv_heads is None else kv_heads
        self.value_dim = head_dim if value_dim is None else value_dim
        require(heads % self.kv_heads == 0, "kv_heads", self.kv_heads, f"a divisor of heads={heads}")
        self.causal = causal
        self.scale = head_dim**-0.5 if scale is None else scale
        self.max_len = max_len
        self.seed = seed

    def __init_subclass__(cls, **options: Any) -> None:
        """Wrap the subclass: check its settings and the inputs of the methods it overrides besides `forward`."""
        super().__init_subclass__(**options)
        if "__init__" in vars(cls):
            setattr(cls, "__init__", checked_types(cls.__init__))  # noqa: B010, type checkers reject assignment
        for name in ("naive", "prepare", "comparisons", "components"):
            if name in vars(cls):
                setattr(cls, name, checked(vars(cls)[name]))
        for name, least in (("stream", 0), ("block", 1)):
            if name in vars(cls):
                setattr(cls, name, checked_size(least)(vars(cls)[name]))

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, *, first: Tensor | None = None) -> Any:
        """Run `forward` on checked q (B, H, N, D), k (B, G, M, D), v (B, G, M, E) and `first` (B,).

        Raises ValueError for tensors that do not fit the attention or each other, for a `first` outside 0 to M, and for
        any problem that `why_not` rejects. An output without rows is returned without running the backend.
        """
        q, k, v = one_dtype(q, k, v)
        check_call(self, q, k, v, first=first)
        if q.shape[0] == 0 or q.shape[2] == 0:
            return empty_output(self, q, k, v)
        q, k, v = whole_vectors(q, k, v)
        if first is not None:
            if not self.accepts_padding:
                return by_row(self, q, k, v, first)
            q, k, v = without_padding(q, k, v, first=first)
        if not under_autocast(q):
            return super().__call__(q, k, v, first=first)
        with torch.autocast(q.device.type, enabled=False):
            return super().__call__(q, k, v, first=first)

    @abstractmethod
    def forward(
        self,
        q: Float[Tensor, "B H N D"],
        k: Float[Tensor, "B G M D"],
        v: Float[Tensor, "B G M E"],
        *,
        first: Int[Tensor, " B"] | None = None,
    ) -> Float[Tensor, "B H N E"]:
        """Return the attention output, differentiable, in q's dtype and on q's device. Does not modify its inputs.

        `first` is the first real position of each left-padded row: earlier keys are never attended to, and earlier
        queries give zeros. In eval mode a call changes no state. The inputs have been checked: there is at least one
        query and one sequence, padding is zeroed, and each vector is contiguous.
        """

    @checked
    def naive(
        self,
        q: Float[Tensor, "B H N D"],
        k: Float[Tensor, "B G M D"],
        v: Float[Tensor, "B G M E"],
        *,
        first: Int[Tensor, " B"] | None = None,
        rows: Int[Tensor, " R"] | None = None,
    ) -> Float[Tensor, "B H R E"]:
        """Compute the definition of this method in float64, slowly, for all query rows or for `rows`."""
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
        """Compute what this method approximates, in float64: softmax attention unless `approximates` says otherwise."""
        pairs = causal_pairs(q.shape[2], k.shape[2], causal=self.causal, first=first, rows=rows, device=q.device)
        return softmax_attention(q, k, v, pairs, self.scale, rows=rows)

    @property
    def learns(self) -> bool:
        """Whether `prepare` learns anything from a calibration sample with the current settings."""
        return type(self).prepare is not Attention.prepare

    @checked
    def prepare(self, q: Float[Tensor, "B H N D"], k: Float[Tensor, "B G M D"], v: Float[Tensor, "B G M E"]) -> None:
        """Learn codebooks or hash functions from a calibration sample, never from the input that is attended to.

        The result is stored in parameters or buffers whose shapes do not change, so `state_dict` includes it.
        """
        del q, k, v

    @checked
    def comparisons(self, q: Float[Tensor, "B H N D"], k: Float[Tensor, "B G M D"]) -> Int[Tensor, "B H"]:
        """Return the number of query-key scores that enter the output on this input, per sequence and head."""
        scores = attended_pairs(q.shape[2], k.shape[2], self.causal)
        return torch.full(q.shape[:2], scores, dtype=torch.int64, device=q.device)

    def why_not(self, problem: Problem) -> str:
        """Return an empty string if the problem can run, else one plain sentence that says why it cannot."""
        if problem.queries > problem.keys:
            return (
                f"queries are the last of the keys' positions, so {problem.queries} queries need at least as many keys"
            )
        if problem.dtype not in self.tolerance:
            names = ", ".join(str(dtype).removeprefix("torch.") for dtype in self.tolerance)
            return f"dtype {str(problem.dtype).removeprefix('torch.')} is not supported; supported are {names}"
        return ""

    def cost(self, problem: Problem) -> Cost:
        """Cost of softmax attention over every pair: 2·D to score a pair and 2·E to add its value.

        The state is the whole cache, M·G·(D + E) values.
        """
        pairs = attended_pairs(problem.queries, problem.keys, problem.causal) * problem.batch * problem.heads
        values = problem.batch * problem.keys * problem.kv_heads * (problem.head_dim + problem.value_dim)
        return Cost(
            flops=2 * pairs * (problem.head_dim + problem.value_dim),
            comparisons=pairs,
            state_bytes=values * problem.dtype.itemsize,
        )

    @checked
    def components(
        self, q: Float[Tensor, "B H N D"], k: Float[Tensor, "B G M D"], v: Float[Tensor, "B G M E"]
    ) -> Mapping[str, Callable[[], object]]:
        """Return the stages of `forward` on these inputs by name, in order; each can be run alone.

        The last stage returns the output. Empty if the method has no stages worth timing separately.
        """
        del q, k, v
        return {}

    @checked_size(0)
    def stream(self, batch: int) -> Stream | None:
        """Return a new decoding state for `batch` sequences, or None if the method cannot decode."""
        del batch
        return None

    @checked_size(1)
    def block(self, model_dim: int) -> nn.Module:
        """Return the layer around this attention; it maps x (B, N, model_dim) to the same shape.

        A block has `forward(x, *, first=None)` and `naive(x, *, first=None, rows=None)`.
        """
        from attentions.layer import AttentionLayer  # imported here because the layer imports this class

        return AttentionLayer(model_dim, self)


def attended_pairs(queries: int, keys: int, causal: bool) -> int:
    """Number of query-key pairs of one head: all pairs, or those with the key at or before the query's position."""
    return queries * keys - queries * (queries - 1) // 2 if causal else queries * keys
