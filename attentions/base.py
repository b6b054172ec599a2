"""The interface that every attention in this project implements.

Axis letters, everywhere in the project:

    B batch    H query heads    G key/value heads (H is a multiple of G)
    N queries  M keys           D query/key dimension    E value dimension
    R selected query rows       T tokens given to a stream at once

Queries are the last N of the M positions: query i stands at position M - N + i. (torch's `is_causal`
aligns the other way, to the top left.)
"""

from __future__ import annotations

import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from attentions.inputs import (
    check_first,
    check_index,
    check_inputs,
    lasting,
    one_dtype,
    under_autocast,
    whole_vectors,
    without_padding,
)
from attentions.reference import causal_pairs, softmax_attention
from attentions.settings import checked_size, checked_types, is_integer, is_number, require
from transformer_vq.precision import without_autocast

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
    """Decoding: attention over a sequence that arrives in pieces, with whatever state that needs.

    Subclasses write `advance`, `select` and `state_bytes`. What they keep is never an inference tensor, so that a
    stream may be filled under `torch.inference_mode` and go on without, and the other way round.
    """

    def __init__(self, attention: Attention, batch: int) -> None:
        self.batch = batch
        self._checks, self._dtype = attention, None

    _checks: Attention
    _dtype: torch.dtype | None  # of the first piece

    def extend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Append T >= 1 tokens, q (B, H, T, D), k (B, G, T, D), v (B, G, T, E), and return their rows (B, H, T, E).

        Any split of a sequence gives `forward`'s rows. Raises ValueError for what does not fit the attention, for
        another batch than the stream was made for and, but under autocast, for another dtype than the first piece's.
        """
        q, k, v = one_dtype(q, k, v, dtype=self._dtype)
        check_call(self._checks, q, k, v)
        if len(q) != self.batch:
            raise ValueError(f"q has a batch of {len(q)}: the stream was made for {self.batch}")
        if q.shape[2] != k.shape[2] or q.shape[2] == 0:
            raise ValueError(
                f"{q.shape[2]} queries and {k.shape[2]} keys: a piece has one of each a token, at least one"
            )
        if q.dtype != (self._dtype or q.dtype):
            raise ValueError(f"q is {q.dtype}: the stream holds {self._dtype}")
        self._dtype = q.dtype
        if self.batch == 0:
            return empty_output(self._checks, q, k, v)
        with lasting():
            q, k, v = (x.clone() if x.is_inference() else x for x in whole_vectors(q, k, v))
            with without_autocast(q.device):
                return self.advance(q, k, v)

    def reorder(self, index: Tensor) -> None:
        """Keep the sequences that `index` (B,) names, in its order (beam search).

        Raises ValueError for an index that is no vector of integers from 0 to the batch's size - 1.
        """
        check_index("index", index, self.batch)
        with lasting():
            self.select(index.clone() if index.is_inference() else index)
        self.batch = len(index)

    @abstractmethod
    def advance(
        self, q: Float[Tensor, "B H T D"], k: Float[Tensor, "B G T D"], v: Float[Tensor, "B G T E"]
    ) -> Float[Tensor, "B H T E"]:
        """`extend` on what it has checked."""

    @abstractmethod
    def select(self, index: Int[Tensor, " B"]) -> None:
        """`reorder` by an index that it has checked."""

    @property
    @abstractmethod
    def state_bytes(self) -> int:
        """Bytes that the state holds now."""


def checked(method: Callable[..., Any]) -> Callable[..., Any]:
    """A method on q, k and perhaps v with the checks of a call, padding hidden and autocast off."""

    @functools.wraps(method)
    def run(self: Attention, q: Tensor, k: Tensor, v: Tensor | None = None, **options: Any) -> Any:
        first, rows = options.get("first"), options.get("rows")
        given = one_dtype(*((q, k) if v is None else (q, k, v)))
        check_call(self, *given, first=first)
        if rows is not None:
            check_index("rows", rows, q.shape[2])
        count = q.shape[2] if rows is None else len(rows)
        if len(q) * count == 0:
            return _without_rows(method.__name__, self, given, count)
        if first is not None:
            given = without_padding(*given, first=first)
        with without_autocast(q.device):
            return method(self, *given, **options)

    return run


def _without_rows(name: str, attention: Attention, given: tuple[Tensor, ...], rows: int) -> Any:
    """What such a method gives for no sequence or no row."""
    q = given[0]
    if name == "prepare":
        raise ValueError(f"q has shape {tuple(q.shape)}: a calibration sample has a sequence and a position at least")
    if name == "comparisons":
        return torch.zeros(q.shape[:2], dtype=torch.int64, device=q.device)
    return {} if name == "components" else empty_output(attention, *given, rows=rows).double()


class Attention(nn.Module, ABC):
    """An attention of fixed settings. Subclasses are final and must write `forward` alone.

    A call checks its inputs, hides what padding holds and then runs `forward` with autocast off: an attention
    computes in the dtype of its inputs, or in autocast's where theirs differ.

    Class facts: `paper` a link; `approximates` what the output should be close to ("softmax",
    "shared-qk softmax", or None for a method judged by tasks only); `exact` whether it equals that up to
    rounding; `claimed_time` the growth its authors claim ("n", "n log n", "n^2"); `causality` "strict"
    (nothing after t changes the first t rows) or "selection" (later tokens change which earlier keys are
    chosen); `tolerance` dtype -> relative error allowed against its own `naive`; `claimed_components` by name of a
    component the share of the time and the exponent over n that its authors claim.

    Raises ValueError for heads that are not a multiple of kv_heads, for sizes that are no integers of at least one, and
    for a scale that is no finite number.
    """

    paper: ClassVar[str]
    approximates: ClassVar[Literal["softmax", "shared-qk softmax"] | None] = "softmax"
    exact: ClassVar[bool] = False
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
        """Check the settings of a subclass, and the inputs of what it writes beside `forward`."""
        super().__init_subclass__(**options)
        if "__init__" in vars(cls):
            setattr(cls, "__init__", checked_types(cls.__init__))  # noqa: B010, mypy and pyright refuse to assign it
        for name in ("naive", "prepare", "comparisons", "components"):
            if name in vars(cls):
                setattr(cls, name, checked(vars(cls)[name]))
        for name, least in (("stream", 0), ("block", 1)):
            if name in vars(cls):
                setattr(cls, name, checked_size(least)(vars(cls)[name]))

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, *, first: Tensor | None = None) -> Any:
        """`forward` on q (B, H, N, D), k (B, G, M, D), v (B, G, M, E) and `first` (B,), checked.

        Raises ValueError for tensors that do not fit the attention or each other, for a `first` outside 0 to M, and
        for what `why_not` gives a reason against. An output without rows needs no backend.
        """
        q, k, v = one_dtype(q, k, v)
        check_call(self, q, k, v, first=first)
        if q.shape[0] == 0 or q.shape[2] == 0:
            return empty_output(self, q, k, v)
        q, k, v = whole_vectors(q, k, v)
        if first is not None:
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
        """Attention output in q's dtype and on q's device; differentiable; inputs are left untouched.

        `first` holds the first real position of each left-padded row: earlier keys are never attended,
        and earlier queries give zeros. In eval mode a call changes no state. Inputs are checked, hold a query and a
        sequence at least, zeros for padding, and each vector in one piece.
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

    @property
    def learns(self) -> bool:
        """Whether `prepare` takes anything from a calibration sample, with the settings at hand."""
        return type(self).prepare is not Attention.prepare

    @checked
    def prepare(self, q: Float[Tensor, "B H N D"], k: Float[Tensor, "B G M D"], v: Float[Tensor, "B G M E"]) -> None:
        """Learn codebooks or hash functions from a calibration sample; never from what is attended.

        What is learnt goes to parameters or buffers of unchanged shapes, so that `state_dict` carries it.
        """
        del q, k, v

    @checked
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

    @checked
    def components(
        self, q: Float[Tensor, "B H N D"], k: Float[Tensor, "B G M D"], v: Float[Tensor, "B G M E"]
    ) -> Mapping[str, Callable[[], object]]:
        """The stages of `forward` on these inputs, by name and in order, each ready to run alone.

        The last gives the output. Empty where a method has no stages worth telling apart.
        """
        del q, k, v
        return {}

    @checked_size(0)
    def stream(self, batch: int) -> Stream | None:
        """A fresh decoding state for `batch` sequences, or None where the method cannot decode."""
        del batch
        return None

    @checked_size(1)
    def block(self, model_dim: int) -> nn.Module:
        """The layer around this attention, x (B, N, model_dim) to the same shape.

        A block has `forward(x, *, first=None)` and `naive(x, *, first=None, rows=None)`.
        """
        from attentions.layer import AttentionLayer  # the layer needs this class

        return AttentionLayer(model_dim, self)


def check_call(
    attention: Attention, q: Tensor, k: Tensor, v: Tensor | None = None, *, first: Tensor | None = None
) -> None:
    """Raise ValueError for inputs that do not fit the attention or each other, and for what `why_not` refuses."""
    check_inputs(attention, q, k, v)
    learns = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or (v is not None and v.requires_grad))
    if reason := attention.why_not(problem_of(attention, q, k, backward=learns)):
        raise ValueError(reason)
    if first is not None:
        check_first(first, q, k)


def empty_output(attention: Attention, q: Tensor, k: Tensor, v: Tensor, *, rows: int | None = None) -> Tensor:
    """The output for no query or no sequence, differentiable like any other."""
    count = q.shape[2] if rows is None else rows
    return q.new_zeros(*q.shape[:2], count, attention.value_dim) + 0 * (q.sum() + k.sum() + v.sum())


def attended_pairs(queries: int, keys: int, causal: bool) -> int:
    """Query-key pairs of one head: all of them, or those at or before each query's own position."""
    return queries * keys - queries * (queries - 1) // 2 if causal else queries * keys


def problem_of(
    attention: Attention, q: Shaped[Tensor, "B H N D"], k: Shaped[Tensor, "B G M D"], *, backward: bool = False
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
