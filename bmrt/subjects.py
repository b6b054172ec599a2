"""For the harness: what one decoded token costs over a bounded cache, and over a full one.

    python -m harness.sweep bmrt/decode.yml

A case is a row as any other: time and memory of appending one token after n, bytes of the state. The prompt's queries
are drawn, its keys and values are the run's inputs. `bmrt.attention:BoundedAttention` has a budget and a strategy; any
other backend with a stream is the full cache to compare with.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from attentions.base import Stream
from attentions.reference import softmax_attention
from bmrt.attention import BoundedAttention, BoundedStream
from harness import gate
from harness.attention_case import build_attention
from harness.inputs import make_inputs
from harness.references import Store
from harness.rows import Case
from harness.subjects import Facts, Finding, Trial, Unsupported

FILL = 512  # tokens of the prompt at a time


class DecodeSubject:
    """One token after a prompt of n."""

    def setup(self, case: Case, store: Store, key: str) -> Trial:
        del store, key  # inputs are made here: small, and a prompt's queries are drawn anyway
        torch.set_grad_enabled(False)
        if case.mode != "decode" or case.level != "kernel":
            raise Unsupported("a cache is measured in mode decode at kernel level")
        attention = build_attention(case)
        stream = attention.stream(case.batch)
        if stream is None or not (isinstance(attention, BoundedAttention) or attention.exact):
            raise Unsupported("it is neither a bounded cache nor an exact attention with a stream")
        return DecodeTrial(stream, attention.scale, attention.tolerance[getattr(torch, case.dtype)], case)


class DecodeTrial(Trial):
    """A filled stream, and two tokens that are appended in turn."""

    tokens = 1

    def __init__(self, stream: Stream, scale: float, tolerance: float, case: Case) -> None:
        self.device = torch.device(case.device)
        self._case, self._scale, self._tolerance = case, scale, tolerance
        made = [make_inputs(case, variant) for variant in (0, 1)]
        self._inputs = [[x.to(self.device) for x in (one.q, one.k, one.v)] for one in made]
        self._fill(stream)
        self._filled = stream
        self.rewind()

    def call(self, variant: int) -> Tensor:
        q, k, v = (x[:, :, -1:] for x in self._inputs[variant])
        self._before = self._seen()
        self._appended.append(variant)
        return self._stream.extend(q, k, v)

    def rewind(self) -> int:
        """Back to the prompt after every few tokens, so that the length measured stays what it is."""
        self._stream = copy.deepcopy(self._filled)
        self._appended: list[int] = []
        return 8

    def check(self, variant: int, answer: Any) -> Finding:
        """Against softmax in float64 over what the stream held, as it says itself before the call."""
        if wrong := gate.not_finite(answer):
            return Finding(wrong=wrong)
        k, v = (self._sequence(i) for i in (1, 2))
        q = self._inputs[variant][0][:, :, -1:]
        visible = self._before.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
        error = gate.relative_error(answer, softmax_attention(q, k, v, visible, self._scale))
        return Finding({"naive_error": error}, gate.disagrees(error, self._tolerance, "softmax over what it kept"))

    def facts(self, *, thorough: bool) -> Facts:
        del thorough
        pairs = float(self._case.batch * self._case.heads * self._before.sum(-1).amax())
        kernel = "bounded" if isinstance(self._stream, BoundedStream) else "full"
        return Facts(kernel=kernel, state_bytes=self._filled.state_bytes, comparisons=pairs)

    def _fill(self, stream: Stream) -> None:
        _, k, v = self._inputs[0]
        draw = torch.Generator().manual_seed(self._case.seed)
        for start in range(0, k.shape[2] - 1, FILL):
            at = slice(start, min(start + FILL, k.shape[2] - 1))
            shape = (self._case.batch, self._case.heads, at.stop - at.start, self._case.head_dim)
            q = torch.randn(shape, generator=draw).to(k)
            stream.extend(q, k[:, :, at], v[:, :, at])

    def _sequence(self, which: int) -> Tensor:
        """Keys or values of the prompt and of what was appended."""
        prompt = self._inputs[0][which][:, :, :-1]
        return torch.cat([prompt, *(self._inputs[i][which][:, :, -1:] for i in self._appended)], dim=2)

    def _seen(self) -> Tensor:
        """(B, G, 1, N): what the next token may look at, itself included."""
        N = self._inputs[0][1].shape[2] + len(self._appended)
        shape = (self._case.batch, self._case.kv_heads, 1, N)
        if not isinstance(self._stream, BoundedStream):
            return torch.ones(shape, dtype=torch.bool, device=self.device)
        visible = torch.zeros(shape, dtype=torch.bool, device=self.device)
        visible[:, :, 0].scatter_(2, self._stream.layer.positions, value=True)
        visible[..., -1] = True
        return visible
