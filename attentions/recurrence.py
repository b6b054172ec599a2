"""What mamba and mamba2 share: a state that decays, is added to by each key, and is read by each query.

    h[t] = exp(step[t] · rate) · h[t - 1] + step[t] · x[t] ⊗ b[t]        y[t] = c[t] · h[t]

The state h (E, S) of a key/value head is read by each of its R query heads with a c of its own. Without a causal
mask the recurrence runs both ways, and the diagonal, which both count, is taken off once.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from attentions.base import Attention, Cost, Problem, Stream

SEGMENT = 8192  # positions worked on at once where nothing learns: their terms stay in the cache


@dataclass(frozen=True)
class Terms:
    """The recurrence's inputs; `rate` is negative, `step` positive. K is G, or 1 for all, as axes with # may be."""

    c: Float[Tensor, "B K R N S"]
    b: Float[Tensor, "B K M S"]
    x: Float[Tensor, "B G M E"]
    step: Float[Tensor, "B G M #E"]
    rate: Float[Tensor, "#G #E #S"]

    @property
    def queries(self) -> int:
        """N, the last of the M positions."""
        return self.c.shape[3]

    def reversed(self) -> Terms:
        """The recurrence from the last position back to the first query."""
        b, x, step = (y[:, :, -self.queries :].flip(2) for y in (self.b, self.x, self.step))
        return Terms(self.c.flip(3), b, x, step, self.rate)

    def diagonal(self) -> Float[Tensor, "B G R N E"]:
        """What each position adds to its own output."""
        b, x, step = (y[:, :, None, -self.queries :] for y in (self.b, self.x, self.step))
        return (self.c * b).sum(-1, keepdim=True) * (step * x)

    def double(self) -> Terms:
        """The same in float64."""
        return Terms(*(y.double() for y in (self.c, self.b, self.x, self.step, self.rate)))


def sequential(terms: Terms, rows: Int[Tensor, " T"]) -> Float[Tensor, "B G R T E"]:
    """The named query rows in float64, position by position."""
    t = terms.double()
    past = t.b.shape[2] - t.queries
    wanted = [past + row for row in rows.tolist()]
    state, kept = t.x.new_zeros(*t.x.shape[:2], t.x.shape[3], t.b.shape[3]), {}
    for begin in range(0, max(wanted) + 1, 256):  # decays and inputs of a few positions at once
        step, x, b = (y[:, :, begin : begin + 256] for y in (t.step, t.x, t.b))
        decays = (step[..., None] * t.rate[:, None]).exp().unbind(2)
        inputs = ((step * x)[..., None] * b[..., None, :]).unbind(2)
        for at, (decay, entry) in enumerate(zip(decays, inputs, strict=True), start=begin):
            state = torch.addcmul(entry, decay, state)
            kept |= {at: state} if at in wanted else {}
    states = torch.stack([kept[at] for at in wanted], dim=2)
    return torch.einsum("bgrns,bgnes->bgrne", t.c[:, :, :, rows], states)


def both_ways(terms: Terms, scan: Callable[[Terms], Tensor], *, causal: bool) -> Float[Tensor, "B G R N E"]:
    """`scan` over the past, and over the future too unless `causal`."""
    out = scan(terms)
    return out if causal else out + scan(terms.reversed()).flip(3) - terms.diagonal()


def naive_both_ways(terms: Terms, *, causal: bool, rows: Int[Tensor, " T"] | None = None) -> Float[Tensor, "B G R T E"]:
    """`both_ways` by the sequential recurrence, for the named rows or all."""
    rows = torch.arange(terms.queries, device=terms.c.device) if rows is None else rows
    out = sequential(terms, rows)
    if causal:
        return out
    back = sequential(terms.reversed(), terms.queries - 1 - rows)
    return out + back - terms.double().diagonal()[:, :, :, rows]


def at_least_float32(dtype: torch.dtype) -> torch.dtype:
    """The precision that states are kept in."""
    return torch.promote_types(dtype, torch.float32)


def hide_padding(x: Tensor, first: Int[Tensor, " B"] | None, start: int = 0, dim: int = 2) -> Tensor:
    """Zeros before each row's first real position; entry 0 of axis `dim` stands at position `start`."""
    if first is None:
        return x
    at = torch.arange(start, start + x.shape[dim], device=x.device)
    hidden = at < first[:, None]
    return x.masked_fill(hidden.view(len(first), *[1] * (dim - 1), -1, *[1] * (x.ndim - dim - 1)), 0)


class Recurrence(Attention):
    """An attention that is a recurrence over a bounded state. Subclasses write `terms`, `scan` and `states`.

    It is no weighted sum of values under softmax: nothing is normalised, so tasks judge it, not error against
    softmax. Scores are between queries and the entries of the state: S a query, no query-key pairs.
    """

    approximates = None
    claimed_time = "n"

    @property
    @abstractmethod
    def states(self) -> int:
        """S, the entries of the state for each value channel."""

    @abstractmethod
    def terms(self, q: Float[Tensor, "B H N D"], k: Float[Tensor, "B G M D"], v: Float[Tensor, "B G M E"]) -> Terms:
        """The recurrence that q, k and v stand for, in their dtype."""

    @abstractmethod
    def scan(
        self, terms: Terms, state: Float[Tensor, "B G E S"] | None = None
    ) -> tuple[Float[Tensor, "B G R N E"], Float[Tensor, "B G E S"]]:
        """Run the recurrence from `state`, zeros if None; the output and the last state."""

    def forward(
        self,
        q: Float[Tensor, "B H N D"],
        k: Float[Tensor, "B G M D"],
        v: Float[Tensor, "B G M E"],
        *,
        first: Int[Tensor, " B"] | None = None,
    ) -> Float[Tensor, "B H N E"]:
        learns = torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v))
        if self.causal and q.shape[2] == k.shape[2] and not learns:
            return self._by_segments(q, k, v, first)
        terms = self._terms(q, k, v, first, at_least_float32(q.dtype))
        out = both_ways(terms, lambda t: self.scan(t)[0], causal=self.causal)
        return hide_padding(out.flatten(1, 2), first, k.shape[2] - q.shape[2]).to(q.dtype)

    def _by_segments(self, q: Tensor, k: Tensor, v: Tensor, first: Tensor | None) -> Tensor:
        """A segment after another from the state of the one before, so that no step makes memory of the whole length.

        Terms of a million tokens are gigabytes of fresh pages, whose first touch took 0.4 of the time.
        """
        out, state = v.new_empty(*q.shape[:3], v.shape[3]), None
        for start in range(0, q.shape[2], SEGMENT):
            piece = slice(start, start + SEGMENT)
            parts = (hide_padding(x[:, :, piece], first, start).to(at_least_float32(x.dtype)) for x in (q, k, v))
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
        """The recurrence in float64, position by position."""
        out = naive_both_ways(self._terms(q, k, v, first, torch.float64), causal=self.causal, rows=rows).flatten(1, 2)
        if first is None:
            return out
        at = torch.arange(q.shape[2], device=q.device) if rows is None else rows
        hidden = at + (k.shape[2] - q.shape[2]) < first[:, None]
        return out.masked_fill(hidden[:, None, :, None], 0)

    def comparisons(self, q: Float[Tensor, "B H N D"], k: Float[Tensor, "B G M D"]) -> Int[Tensor, "B H"]:
        """S a query: c is compared with the entries of the state, never with a key."""
        return torch.full(q.shape[:2], q.shape[2] * self.states, dtype=torch.int64, device=q.device)

    def stream(self, batch: int) -> Stream | None:
        return RecurrentStream(self) if self.causal else None

    def recurrence_cost(self, problem: Problem, flops: int, past_flops: int) -> Cost:
        """FLOPs with the N·S scores of each query head and the G·E·S values of the state, in float32 at least."""
        p = problem
        state = p.batch * p.kv_heads * p.value_dim * self.states
        return Cost(
            flops=flops,
            comparisons=p.batch * p.heads * p.queries * self.states,
            state_bytes=state * at_least_float32(p.dtype).itemsize,
            past_flops=past_flops,
        )

    def draw(self) -> torch.Generator:
        """The source of the fixed projections: a function of the seed alone."""
        return torch.Generator().manual_seed(self.seed)

    def _terms(self, q: Tensor, k: Tensor, v: Tensor, first: Tensor | None, dtype: torch.dtype) -> Terms:
        q = hide_padding(q, first, k.shape[2] - q.shape[2])
        k, v = (hide_padding(x, first) for x in (k, v))  # a value of zero leaves the state at zero
        return self.terms(*(x.to(dtype) for x in (q, k, v)))


class RecurrentStream(Stream):
    """Decoding with a recurrence: the state is all there is, whatever the length."""

    def __init__(self, attention: Recurrence) -> None:
        self._attention = attention
        self._state: Tensor | None = None  # B, G, E, S; made when dtype and device are known

    def extend(
        self, q: Float[Tensor, "B H T D"], k: Float[Tensor, "B G T D"], v: Float[Tensor, "B G T E"]
    ) -> Float[Tensor, "B H T E"]:
        dtype = at_least_float32(q.dtype)
        out, state = self._attention.scan(self._attention.terms(q.to(dtype), k.to(dtype), v.to(dtype)), self._state)
        self._state = state.detach()
        return out.flatten(1, 2).to(q.dtype)

    def reorder(self, index: Int[Tensor, " B"]) -> None:
        if self._state is not None:
            self._state = self._state.index_select(0, index)

    @property
    def state_bytes(self) -> int:
        return 0 if self._state is None else self._state.numel() * self._state.itemsize


def inverse_softplus(x: Tensor) -> Tensor:
    """The number whose softplus is x."""
    return x + torch.log(-torch.expm1(-x))


def published_steps(shape: tuple[int, ...], generator: torch.Generator | None = None) -> Tensor:
    """Bias whose softplus is log-uniform between 1e-3 and 1e-1, as both Mamba papers initialise it."""
    low, high = torch.tensor([1e-3, 1e-1]).log().tolist()
    return inverse_softplus((low + (high - low) * torch.rand(shape, generator=generator)).exp())


def project(x: Float[Tensor, "*batch T D"], weight: Tensor) -> Tensor:
    """x by a weight of its head, (..., T, D) by (heads, D, S), in x's dtype."""
    return torch.matmul(x, weight.to(x.dtype))


def softplus(x: Tensor) -> Tensor:
    """log(1 + exp(x)) without torch's switch to the identity at 20, so that float64 is exact."""
    return F.softplus(x, threshold=40.0)
