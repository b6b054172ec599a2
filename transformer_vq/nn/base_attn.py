"""The layer around VQ attention: projections, normalised keys, gate, dropout, documents and state.

Lingle 2023, https://arxiv.org/abs/2309.16354, section 3.4, without its positions: if a model needs them, it adds them
to the layer's input. Queries and keys are layer-normalised without gain and divided by the fourth root of their width,
so scores are products divided by its square root.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from transformer_vq.codes import State, attend_all, attend_past
from transformer_vq.nn.vq import Quantised, VectorQuantiser
from transformer_vq.quadratic import dense

if TYPE_CHECKING:
    from transformer_vq.nn.config_spec import TransformerConfig


@dataclass(frozen=True)
class LayerState:
    """State of a causal layer between calls: past keys by code, and the document they belong to."""

    keys: State
    document: Int[Tensor, " B"]


@dataclass(frozen=True)
class Result:
    """Output of a call, and what training needs in addition.

    `loss` is c_beta times the commitment loss of keys, and of queries if they are quantised; add it to the task's loss.
    `figures` maps names to numbers: commitment, codebook loss and perplexity of keys and queries. `state` is None
    without a causal mask.
    """

    out: Float[Tensor, "B N C"]
    loss: Float[Tensor, ""]
    figures: dict[str, float]
    state: LayerState | None


class BaseAttention(nn.Module):
    """Maps x (B, N, d_model) to the same shape, with quantised keys and optionally quantised queries.

    Weights have torch's default initialisation. In training, codebooks are updated after the output is computed. They
    do not change in eval mode, nor when gradient checkpointing reruns the layer.
    """

    def __init__(self, config: TransformerConfig, *, quantise_queries: bool) -> None:
        super().__init__()
        self.config = c = config
        self.to_q = nn.Linear(c.d_model, c.n_head * c.key_dim, bias=False)
        self.to_k = nn.Linear(c.d_model, c.n_head * c.key_dim, bias=False)
        self.to_v = nn.Linear(c.d_model, c.n_head * c.value_dim, bias=False)
        self.to_gate = nn.Linear(c.d_model, c.n_head * c.value_dim, bias=False) if c.gated else None
        self.to_out = nn.Linear(c.n_head * c.value_dim, c.d_model, bias=False)
        self.key_quantiser = self._quantiser(c.key_codes, seed=0)
        self.query_quantiser = self._quantiser(c.query_codes, seed=1) if quantise_queries else None

    def forward(self, x: Float[Tensor, "B N C"], doc_ids: Int[Tensor, ...] | None = None) -> Float[Tensor, "B N C"]:
        """Return only the output; see `run`."""
        return self.run(x, doc_ids).out

    def run(
        self,
        x: Float[Tensor, "B N C"],
        doc_ids: Int[Tensor, ...] | None = None,
        state: LayerState | None = None,
        *,
        quadratic: bool = False,
    ) -> Result:
        """Run the layer. Attention stays within runs of equal `doc_ids`; without them everything is document 0.

        `state` continues the sequences of an earlier causal call if their document continues. `quadratic` computes the
        same result by dense softmax, without a state. An empty batch gives an empty output. Raises ValueError for
        shapes that do not fit and for a state that cannot be used.
        """
        self._check(x, doc_ids, state, quadratic)
        if not len(x):
            return self._of_nothing(x)
        raw, k, v = self._project(x)
        keys, queries = self.key_quantiser(k), self.query_quantiser and self.query_quantiser(raw)
        parts = _Parts(
            raw if queries is None else queries.codewords, queries and queries.codes, k, keys.codes, v, keys.book
        )
        out, last = self._documents(parts, doc_ids, state, quadratic)
        out = self._finish(x, out)
        if self.training:
            self.key_quantiser.update(k, keys.codes)
            if self.query_quantiser is not None and queries is not None:
                self.query_quantiser.update(raw, queries.codes)
        return self._result(out, {"keys": keys} | ({} if queries is None else {"queries": queries}), last)

    def _quantiser(self, codes: int, *, seed: int) -> VectorQuantiser:
        c = self.config
        spread = c.key_dim**-0.25  # the spread of the keys' entries
        return VectorQuantiser(c.n_head, codes, c.key_dim, gamma=c.c_gamma, dead=c.c_dead, spread=spread, seed=seed)

    def _check(self, x: Tensor, doc_ids: Tensor | None, state: LayerState | None, quadratic: bool) -> None:
        if x.ndim != 3 or x.shape[2] != self.config.d_model or not x.shape[1]:
            raise ValueError(
                f"x of shape {tuple(x.shape)} is not allowed: it must be (batch, length >= 1, {self.config.d_model})"
            )
        weight, kind = self.to_q.weight, x.device.type
        mixed = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind) and x.is_floating_point()
        if x.dtype != weight.dtype and not mixed:
            raise ValueError(f"x of dtype {x.dtype} is not allowed: the layer's weights are {weight.dtype}")
        if doc_ids is not None and doc_ids.shape != x.shape[:2]:
            raise ValueError(f"doc_ids of shape {tuple(doc_ids.shape)} is not allowed: it must be {tuple(x.shape[:2])}")
        if state is not None and (quadratic or not self.config.causal):
            raise ValueError("a state is not allowed: only causal attention in linear time continues from one")
        if state is not None and len(state.document) != len(x):
            raise ValueError(f"a state of {len(state.document)} sequences is not allowed: x has {len(x)}")

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values in float32 or wider, because sums of float16 values overflow."""
        whole, width = torch.promote_types(x.dtype, torch.float32), self.config.key_dim
        q, k, v = (rearrange(f(x), "b n (h d) -> b h n d", h=self.config.n_head).to(whole) for f in self._projections())
        q, k = (F.layer_norm(y, (width,)) * width**-0.25 for y in (q, k))
        return q, k, v

    def _projections(self) -> tuple[nn.Linear, nn.Linear, nn.Linear]:
        return self.to_q, self.to_k, self.to_v

    def _documents(
        self, parts: _Parts, doc_ids: Tensor | None, state: LayerState | None, quadratic: bool
    ) -> tuple[Tensor, LayerState | None]:
        """Attend within all documents; return the output and the state after the last document of each sequence."""
        (B, H, N, E), causal = parts.v.shape, self.config.causal
        documents = parts.codes.new_zeros(B, N) if doc_ids is None else doc_ids
        empty = State.empty(B, H, self.key_quantiser.codes, E, parts.v.device)
        if (documents == documents[:1, :1]).all() and (state is None or (state.document == documents[:, 0]).all()):
            out, keys = self._stretch(parts, state.keys if state else empty, quadratic)
            return out, LayerState(keys.detach(), documents[:, -1]) if causal else None
        rows, ends = [], []
        for b in range(B):
            one = torch.tensor([b], device=documents.device)
            goes_on = state is not None and bool(state.document[b] == documents[b, 0])
            keys, outs = state.keys.select(one) if state and goes_on else empty.select(one), []
            for begin, end in _stretches(documents[b]):
                keys = keys if begin == 0 else empty.select(one)
                out, keys = self._stretch(parts.part(b, begin, end), keys, quadratic)
                outs.append(out)
            rows.append(torch.cat(outs, dim=2))
            ends.append(keys.detach())
        last = State(torch.cat([x.counts for x in ends]), torch.cat([x.sums for x in ends]))
        return torch.cat(rows), LayerState(last, documents[:, -1]) if causal else None

    def _stretch(self, parts: _Parts, state: State, quadratic: bool) -> tuple[Tensor, State]:
        """Attention within one document; the state is carried on only in causal attention."""
        p, causal, block = parts, self.config.causal, self.config.block_len
        book = p.book.to(p.v.dtype)
        if quadratic:
            return dense(p.q, p.k, p.codes, p.v, book, scale=1.0, causal=causal, block=block).to(p.v.dtype), state
        if causal:
            return attend_past(p.q, p.k, p.codes, p.v, book, state, scale=1.0, block=block)
        state = state.extended(p.codes, p.v, p.k)
        learns = torch.is_grad_enabled() and any(x.requires_grad for x in (p.q, p.k, p.v))
        if p.q_codes is None or self.query_quantiser is None or learns:
            return attend_all(p.q, book, state, scale=1.0), state
        every = self.query_quantiser.codebook.to(p.v.dtype).expand(len(p.v), -1, -1, -1)
        table = attend_all(every, book, state, scale=1.0)  # a query's code determines its output
        return table.gather(2, p.q_codes.unsqueeze(-1).expand(-1, -1, -1, table.shape[3])), state

    def _finish(self, x: Tensor, out: Tensor) -> Tensor:
        """Apply gate, output projection and dropout."""
        out = rearrange(out, "b h n e -> b n (h e)").to(x.dtype)
        out = self.to_out(out if self.to_gate is None else out * F.silu(self.to_gate(x)))
        out = F.dropout(out, self.config.p_dropres, self.training)
        kept = F.dropout(out.new_ones(len(out), 1, 1), self.config.p_droplyr, self.training)
        return out * kept

    def _of_nothing(self, x: Tensor) -> Result:
        """Result for an empty batch: empty output and zero figures; codebooks are not updated."""
        c, v = self.config, self._project(x)[2]
        out, names = self._finish(x, v), ("keys",) if self.query_quantiser is None else ("keys", "queries")
        figures = {f"{what}_{name}": 0.0 for what in names for name in ("commitment", "codebook", "perplexity")}
        keys = State.empty(0, c.n_head, self.key_quantiser.codes, c.value_dim, x.device)
        state = LayerState(keys, torch.zeros(0, dtype=torch.int64, device=x.device)) if c.causal else None
        return Result(out, v.sum(), figures, state)

    def _result(self, out: Tensor, quantised: dict[str, Quantised], state: LayerState | None) -> Result:
        loss = self.config.c_beta * torch.stack([one.commitment for one in quantised.values()]).sum()
        figures = {
            f"{what}_{name}": getattr(one, name).item()
            for what, one in quantised.items()
            for name in ("commitment", "codebook", "perplexity")
        }
        return Result(out, loss, figures, state)


@dataclass(frozen=True)
class _Parts:
    """Inputs of attention: queries and, if quantised, their codes; keys and their codes; values."""

    q: Float[Tensor, "B H N D"]
    q_codes: Int[Tensor, "B H N"] | None
    k: Float[Tensor, "B H N D"]
    codes: Int[Tensor, "B H N"]
    v: Float[Tensor, "B H N E"]
    book: Float[Tensor, "H S D"]  # codebook of the keys

    def part(self, b: int, begin: int, end: int) -> _Parts:
        """Positions `begin` to `end` of sequence b."""
        at = slice(b, b + 1), slice(None), slice(begin, end)
        q_codes = None if self.q_codes is None else self.q_codes[at]
        return _Parts(self.q[at], q_codes, self.k[at], self.codes[at], self.v[at], self.book)


def _stretches(documents: Int[Tensor, " N"]) -> Iterable[tuple[int, int]]:
    """Begin and end of each run of equal numbers."""
    changes = (documents[1:] != documents[:-1]).nonzero()[:, 0] + 1
    edges = [0, *changes.tolist(), len(documents)]
    return pairwise(edges)
