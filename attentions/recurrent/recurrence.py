"""Base of mamba and mamba2: a recurrence over a bounded state, as an attention.

`attentions.recurrent.terms` has the recurrence itself, `attentions.recurrent.definition` its reference.
"""

from __future__ import annotations

from abc import abstractmethod

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from attentions.base import Attention
from attentions.common.problem import Cost, Problem
from attentions.common.stream import Stream
from attentions.recurrent.definition import naive_both_ways, unrolled
from attentions.recurrent.terms import Terms, at_least_float32, both_ways

SEGMENT = 8192  # positions processed at once without gradients, so that their terms stay in cache


class Recurrence(Attention):
    """An attention that is a recurrence over a bounded state. Subclasses implement `terms`, `scan` and `states`.

    It is not a softmax-weighted sum of values: nothing is normalised, so it is judged by tasks, not by its error
    against softmax. Scores are between queries and the entries of the state: S per query, no query-key pairs.
    """

    approximates = None
    claimed_time = "n"

    @property
    @abstractmethod
    def states(self) -> int:
        """S, the number of state entries per value channel."""

    @abstractmethod
    def terms(self, q: Float[Tensor, "B H N D"], k: Float[Tensor, "B G M D"], v: Float[Tensor, "B G M E"]) -> Terms:
        """Return the recurrence for q, k and v, in their dtype."""

    @abstractmethod
    def scan(
        self, terms: Terms, state: Float[Tensor, "B G E S"] | None = None
    ) -> tuple[Float[Tensor, "B G R N E"], Float[Tensor, "B G E S"]]:
        """Run the recurrence from `state`, zeros if None; return the output and the last state."""

    def forward(
        self,
        q: Float[Tensor, "B H N D"],
        k: Float[Tensor, "B G M D"],
        v: Float[Tensor, "B G M E"],
        *,
        first: Int[Tensor, " B"] | None = None,
    ) -> Float[Tensor, "B H N E"]:
        learns = torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v))
        del first  # padding is zeroed: value zero leaves the state at zero, query zero reads zero
        if self.causal and q.shape[2] == k.shape[2] and not learns:
            return self._by_segments(q, k, v)
        terms = self.terms(*(x.to(at_least_float32(x.dtype)) for x in (q, k, v)))
        out = both_ways(terms, lambda t: self.scan(t)[0], causal=self.causal)
        return out.flatten(1, 2).to(q.dtype)

    def _by_segments(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Process one segment after another, each from the last state of the previous one, to bound memory.

        The terms of a million tokens are gigabytes of fresh pages; touching them for the first time took 0.4 of the
        time.
        """
        out, state = v.new_empty(*q.shape[:3], v.shape[3]), None
        for start in range(0, q.shape[2], SEGMENT):
            piece = slice(start, start + SEGMENT)
            parts = (x[:, :, piece].to(at_least_float32(x.dtype)) for x in (q, k, v))
            found, state = self.scan(self.terms(*parts), state)
            out[:, :, piece] = found.flatten(1, 2)
        return out

    def naive(
        self,
        q: Float[Tensor, "B H N D"],
        k: Float[Tensor, "B G M D"],
        v: Float[Tensor, "B G M E"],
        *,
        first: Int[Tensor, " B"] | None = None,
        rows: Int[Tensor, " R"] | None = None,
    ) -> Float[Tensor, "B H R E"]:
        """The recurrence in float64: all rows position by position, or `rows` with the unrolled recurrence."""
        at = torch.arange(q.shape[2], device=q.device) if rows is None else rows.to(q.device)
        if rows is None:
            out = naive_both_ways(self.terms(q.double(), k.double(), v.double()), causal=self.causal).flatten(1, 2)
        elif self.causal:
            out = self._unrolled(q[:, :, at], k, v, at + k.shape[2] - q.shape[2])
        else:
            out = self._unrolled_both_ways(q, k, v, at)
        if first is None:
            return out
        hidden = at + (k.shape[2] - q.shape[2]) < first[:, None]
        return out.masked_fill(hidden[:, None, :, None], 0)

    def _unrolled(self, q: Tensor, k: Tensor, v: Tensor, at: Tensor) -> Tensor:
        """Outputs of queries at positions `at`, with the terms of one segment at a time."""
        out, state = v.new_zeros(*q.shape[:3], v.shape[3], dtype=torch.float64), None
        for start in range(0, int(at.max()) + 1, SEGMENT):
            piece, here = slice(start, start + SEGMENT), ((at >= start) & (at < start + SEGMENT)).nonzero()[:, 0]
            terms = self.terms(*(x.double() for x in (q[:, :, here], k[:, :, piece], v[:, :, piece])))
            found, state = unrolled(terms, at[here] - start, state)
            out = out.index_copy(2, here, found.flatten(1, 2))
        return out

    def _unrolled_both_ways(self, q: Tensor, k: Tensor, v: Tensor, rows: Tensor) -> Tensor:
        past, chosen = k.shape[2] - q.shape[2], q[:, :, rows]
        forth = self._unrolled(chosen, k, v, past + rows)
        k, v = k[:, :, past:], v[:, :, past:]
        back = self._unrolled(chosen, k.flip(2), v.flip(2), q.shape[2] - 1 - rows)
        return (
            forth
            + back
            - self.terms(*(x.double() for x in (chosen, k[:, :, rows], v[:, :, rows]))).diagonal().flatten(1, 2)
        )

    def comparisons(self, q: Float[Tensor, "B H N D"], k: Float[Tensor, "B G M D"]) -> Int[Tensor, "B H"]:
        """S per query: c is compared with the entries of the state, never with a key."""
        return torch.full(q.shape[:2], q.shape[2] * self.states, dtype=torch.int64, device=q.device)

    def stream(self, batch: int) -> Stream | None:
        return RecurrentStream(self, batch) if self.causal else None

    def recurrence_cost(self, problem: Problem, flops: int, past_flops: int) -> Cost:
        """Cost with N·S scores per query head and a state of G·E·S values in float32 or wider."""
        p = problem
        state = p.batch * p.kv_heads * p.value_dim * self.states
        return Cost(
            flops=flops,
            comparisons=p.batch * p.heads * p.queries * self.states,
            state_bytes=state * at_least_float32(p.dtype).itemsize,
            past_flops=past_flops,
        )

    def draw(self) -> torch.Generator:
        """Random generator of the fixed projections, which depend only on the seed."""
        return torch.Generator().manual_seed(self.seed)


class RecurrentStream(Stream):
    """Decoding with a recurrence: keeps only the state, whatever the length."""

    def __init__(self, attention: Recurrence, batch: int) -> None:
        super().__init__(attention, batch)
        self._attention = attention
        self._state: Tensor | None = None  # (B, G, E, S), allocated once dtype and device are known

    def advance(
        self, q: Float[Tensor, "B H T D"], k: Float[Tensor, "B G T D"], v: Float[Tensor, "B G T E"]
    ) -> Float[Tensor, "B H T E"]:
        dtype = at_least_float32(q.dtype)
        out, state = self._attention.scan(self._attention.terms(q.to(dtype), k.to(dtype), v.to(dtype)), self._state)
        self._state = state.detach()
        return out.flatten(1, 2).to(q.dtype)

    def select(self, index: Int[Tensor, " B"]) -> None:
        if self._state is not None:
            self._state = self._state.index_select(0, index)

    @property
    def state_bytes(self) -> int:
        return 0 if self._state is None else self._state.numel() * self._state.itemsize


def inverse_softplus(x: Tensor) -> Tensor:
    """The number whose softplus is x."""
    return x + torch.log(-torch.expm1(-x))


def published_steps(shape: tuple[int, ...], generator: torch.Generator | None = None) -> Tensor:
    """Bias whose softplus is log-uniform between 1e-3 and 1e-1, as both Mamba papers initialise it.

    With a generator, the draw is in float32, whatever torch's default dtype is.
    """
    low, high = torch.tensor([1e-3, 1e-1], dtype=torch.float32).log().tolist()
    dtype = None if generator is None else torch.float32
    return inverse_softplus((low + (high - low) * torch.rand(shape, generator=generator, dtype=dtype)).exp())


def project(x: Float[Tensor, "*batch T D"], weight: Tensor) -> Tensor:
    """Multiply x by its head's weight, (..., T, D) by (heads, D, S), in x's dtype."""
    return torch.matmul(x, weight.to(x.dtype))


def softplus(x: Tensor) -> Tensor:
    """log(1 + exp(x)) without torch's switch to the identity at 20, so that float64 is exact."""
    return F.softplus(x, threshold=40.0)
