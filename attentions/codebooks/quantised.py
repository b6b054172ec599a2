"""Base of the attentions by vector quantisation: codebooks, and keys replaced by codewords.

Each key is replaced by the nearest of its head's `codes` codewords. All keys with one code then have the same score,
and attention takes time linear in the length (`transformer_vq.codes`). On the CPU, a native kernel finds the nearest
codewords and, if no gradient is needed, computes the attention.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Unpack

import torch
from jaxtyping import Float, Int
from torch import Tensor

from attentions.base import Attention
from attentions.common.derivatives import differentiated
from attentions.common.problem import Cost, Problem, problem_of
from attentions.common.settings import Shape, require
from attentions.common.stream import Stream
from attentions.native import vq as native
from transformer_vq.codes import State, attend_all, attend_past
from transformer_vq.kmeans import kmeans, nearest
from transformer_vq.precision import Selector, in_own_dtype
from transformer_vq.quadratic import dense

CALIBRATION_ROWS = 8_192  # vectors per head that a codebook is learnt from, evenly spaced if there are more
LLOYD = 5  # iterations of k-means
NATIVE_BLOCK = 24  # queries per block in the native kernel


@dataclass(frozen=True)
class FoundCodes:
    """The code of each key and, if queries are quantised, of each query."""

    keys: Int[Tensor, "B G M"]
    queries: Int[Tensor, "B H N"] | None = None


class QuantisedAttention(Selector, Attention):
    """Attention with `codes` codewords per key head, in blocks of `block` positions in the torch implementation.

    Codebooks are drawn from the seed, Gaussian like keys after a layer norm, until `prepare` learns them by k-means. A
    NaN key has code 0. Subclasses implement `queries`, `fused` and `score_cost`; `find_codes` if queries have codes.
    """

    paper = "https://arxiv.org/abs/2309.16354"
    accepts_padding = False
    claimed_time = "n"

    def __init__(
        self, heads: int, head_dim: int, *, codes: int = 512, block: int = 128, **shape: Unpack[Shape]
    ) -> None:
        super().__init__(heads, head_dim, **shape)
        require(codes >= 1, "codes", codes, "an integer of at least 1")
        require(block >= 1, "block", block, "an integer of at least 1")
        self.codes, self.block_size = codes, block
        self.register_buffer("key_book", self.drawn(self.kv_heads, 0))

    key_book: Tensor

    def find_codes(self, q: Float[Tensor, "B H N D"], k: Float[Tensor, "B G M D"]) -> FoundCodes:
        """Search the codebooks for everything that is quantised."""
        del q
        return FoundCodes(self.codes_of(k, self.key_book))

    @abstractmethod
    def queries(self, q: Float[Tensor, "B H N D"], found: FoundCodes) -> Float[Tensor, "B H N D"]:
        """Return the queries used for attention, quantised or not."""

    @abstractmethod
    def fused(
        self,
        q: Float[Tensor, "B H N D"],
        found: FoundCodes,
        v: Float[Tensor, "B G N E"] | None,
        state: State,
    ) -> Float[Tensor, "B H N E"]:
        """Attend to the state's keys; with `v`, causally to the N keys in `found` too, which are added to it."""

    @abstractmethod
    def score_cost(self, problem: Problem) -> tuple[int, int]:
        """Return the FLOPs of the queries' codes, scores and weighted values, and the number of scores."""

    def forward(
        self,
        q: Float[Tensor, "B H N D"],
        k: Float[Tensor, "B G M D"],
        v: Float[Tensor, "B G M E"],
        *,
        first: Int[Tensor, " B"] | None = None,
    ) -> Float[Tensor, "B H N E"]:
        del first  # `accepts_padding` is off
        whole = torch.promote_types(q.dtype, torch.float32)
        return self.run(q.to(whole), k.to(whole), v.to(whole), self._empty(v))[0].to(q.dtype)

    def run(
        self, q: Tensor, k: Tensor, v: Tensor, state: State, found: FoundCodes | None = None
    ) -> tuple[Tensor, State]:
        """Attend from the last queries to the state's keys and to these keys, which are added to the state.

        The codes are searched for unless they are given.
        """
        found = self.find_codes(q, k) if found is None else found
        codes, past = found.keys, k.shape[2] - (q.shape[2] if self.causal else 0)
        if native.available(q.device) and not differentiated(q, k, v):
            self.kernel = "native"
            if past:
                native.tally(v[:, :, :past], codes[:, :, :past], state.counts, state.sums)
            own = FoundCodes(codes[:, :, past:], found.queries)
            return self.fused(q, own, v[:, :, past:] if self.causal else None, state), state
        self.kernel = "torch, native codes" if native.available(q.device) else "torch fallback"
        q, book = self.queries(q, found), self.key_book.to(q.dtype)
        if past:
            state = state.extended(codes[:, :, :past], v[:, :, :past], k[:, :, :past])
        if not self.causal:
            return attend_all(q, book, state, scale=self.scale), state
        k, codes, v = k[:, :, past:], codes[:, :, past:], v[:, :, past:]
        return attend_past(q, k, codes, v, book, state, scale=self.scale, block=self.block_size)

    def components(
        self, q: Float[Tensor, "B H N D"], k: Float[Tensor, "B G M D"], v: Float[Tensor, "B G M E"]
    ) -> Mapping[str, Callable[[], object]]:
        """The search for codes, and the attention with codes known, which is all that published tables time."""
        dtype, whole = q.dtype, torch.promote_types(q.dtype, torch.float32)
        q, k, v = (x.to(whole) for x in (q, k, v))

        @in_own_dtype
        def search(q: Tensor, k: Tensor) -> FoundCodes:
            return self.find_codes(q, k)

        @in_own_dtype
        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return self.run(q, k, v, self._empty(v), found)[0].to(dtype)

        found = search(q, k)
        return {"code search": lambda: search(q, k), "attention with known codes": lambda: attend(q, k, v)}

    def _empty(self, v: Float[Tensor, "B G M E"]) -> State:
        return State.empty(len(v), self.kv_heads, self.codes, self.value_dim, v.device)

    def naive(
        self,
        q: Float[Tensor, "B H N D"],
        k: Float[Tensor, "B G M D"],
        v: Float[Tensor, "B G M E"],
        *,
        first: Int[Tensor, " B"] | None = None,
        rows: Int[Tensor, " R"] | None = None,
    ) -> Float[Tensor, "B H R E"]:
        rows = torch.arange(q.shape[2], device=q.device) if rows is None else rows.to(q.device)
        if first is None:
            return self._dense(q, k, v, rows)
        found = []
        for b, real in enumerate(first.tolist()):
            one, start = slice(b, b + 1), max(real - (k.shape[2] - q.shape[2]), 0)
            shown = (rows >= start).nonzero()[:, 0]
            part = self._dense(q[one, :, start:], k[one, :, real:], v[one, :, real:], rows[shown] - start)
            found.append(part.new_zeros(*part.shape[:2], len(rows), part.shape[3]).index_copy(2, shown, part))
        return torch.cat(found)

    def _dense(self, q: Tensor, k: Tensor, v: Tensor, rows: Tensor) -> Tensor:
        whole = torch.promote_types(q.dtype, torch.float32)  # same dtype as `forward`, so that codes are equal
        q, k = q.to(whole), k.to(whole)
        found = self.find_codes(q, k)
        q, codes = self.queries(q, found), found.keys
        book = self.key_book.to(whole)
        return dense(
            q,
            k,
            codes,
            v,
            book,
            scale=self.scale,
            causal=self.causal,
            block=min(self.block_size, q.shape[2]),
            rows=rows,
        )

    def prepare(self, q: Float[Tensor, "B H N D"], k: Float[Tensor, "B G M D"], v: Float[Tensor, "B G M E"]) -> None:
        self.key_book.copy_(self.learnt(k, 0))

    def comparisons(self, q: Float[Tensor, "B H N D"], k: Float[Tensor, "B G M D"]) -> Int[Tensor, "B H"]:
        """Number of scores of queries, or of their codes, with codes of keys."""
        scores = self.score_cost(problem_of(self, q, k))[1]
        return torch.full(q.shape[:2], scores // (len(q) * self.heads), dtype=torch.int64, device=q.device)

    def cost(self, problem: Problem) -> Cost:
        """A key costs 2·D·S for its code and E for its sum; the state is S counts and sums per key head in float64.

        A causal query adds (L + 1)/2 weighted values of its own block, L = 24 in the native kernel.
        """
        p, S = problem, self.codes
        flops, scores = self.score_cost(p)
        key = p.batch * p.kv_heads * (2 * p.head_dim * S + p.value_dim)
        own = p.batch * p.heads * p.queries * (NATIVE_BLOCK + 1) * p.value_dim if p.causal else 0
        state_bytes = 8 * p.batch * p.kv_heads * S * (p.value_dim + 1)
        return Cost(flops + key * p.keys + own, scores, state_bytes, past_flops=key * (p.keys - p.queries))

    def stream(self, batch: int) -> Stream | None:
        return QuantisedStream(self, batch) if self.causal else None

    def codes_of(self, x: Float[Tensor, "B H N D"], book: Float[Tensor, "H S D"]) -> Int[Tensor, "B H N"]:
        """Return the code of each vector's nearest codeword in its head's codebook."""
        return native.nearest(x, book) if native.available(x.device) else nearest(x, book)

    def drawn(self, heads: int, which: int) -> Float[Tensor, "heads S D"]:
        """Gaussian codebooks drawn from the seed."""
        generator = torch.Generator().manual_seed(self.seed * 2 + which)
        return torch.randn(heads, self.codes, self.head_dim, generator=generator, dtype=torch.float32)

    def learnt(self, x: Float[Tensor, "B H N D"], which: int) -> Float[Tensor, "H S D"]:
        """Codebooks learnt from a calibration sample by k-means."""
        rows = x.transpose(0, 1).flatten(1, 2)
        rows = rows[:, :: -(-rows.shape[1] // CALIBRATION_ROWS)]
        draw = torch.Generator().manual_seed(self.seed * 2 + which)
        return kmeans(rows, self.codes, iterations=LLOYD, generator=draw)


class QuantisedStream(Stream):
    """Decoding with counts and sums per code: keeps only that state, whatever the length."""

    def __init__(self, attention: QuantisedAttention, batch: int) -> None:
        super().__init__(attention, batch)
        self._attention = attention
        self._state: State | None = None  # allocated once the device is known

    @torch.no_grad()
    def advance(
        self, q: Float[Tensor, "B H T D"], k: Float[Tensor, "B G T D"], v: Float[Tensor, "B G T E"]
    ) -> Float[Tensor, "B H T E"]:
        a = self._attention
        if self._state is None:
            self._state = State.empty(self.batch, a.kv_heads, a.codes, a.value_dim, v.device)
        whole = torch.promote_types(q.dtype, torch.float32)
        out, self._state = a.run(q.to(whole), k.to(whole), v.to(whole), self._state)
        return out.to(q.dtype)

    def select(self, index: Int[Tensor, " B"]) -> None:
        if self._state is not None:
            self._state = self._state.select(index)

    @property
    def state_bytes(self) -> int:
        return 0 if self._state is None else self._state.bytes
