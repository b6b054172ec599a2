"""For the harness: what decoding costs over a bounded cache, and over a full one.

    python -m harness.sweep bmrt/decode.yml

A case is a row as any other: time and memory of appending `STEPS` tokens after n, one by one, and bytes of the state.
So many at a time since a bounded cache makes room now and then, for several tokens at once: one token alone would
cost either much too little or much too much. `bmrt.attention:BoundedAttention` has a budget and a strategy; any other
backend with a stream is the full cache to compare with.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from jaxtyping import Bool
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
STEPS = 128  # tokens decoded by one call


class DecodeSubject:
    """`STEPS` tokens after a prompt of n."""

    def setup(self, case: Case, store: Store, key: str) -> Trial:
        del store, key  # inputs are made here: the store's have one query, and a prompt needs all
        torch.set_grad_enabled(False)
        if case.mode != "decode" or case.level != "kernel":
            raise Unsupported("a cache is measured in mode decode at kernel level")
        attention = build_attention(case)
        stream = attention.stream(case.batch)
        if stream is None or not (isinstance(attention, BoundedAttention) or attention.exact):
            raise Unsupported("it is neither a bounded cache nor an exact attention with a stream")
        return DecodeTrial(stream, attention.scale, attention.tolerance[getattr(torch, case.dtype)], case)


class DecodeTrial(Trial):
    """A filled stream, and two continuations of the prompt to append."""

    tokens = STEPS

    def __init__(self, stream: Stream, scale: float, tolerance: float, case: Case) -> None:
        self.device = torch.device(case.device)
        self._case, self._scale, self._tolerance = case, scale, tolerance
        whole = case.model_copy(update={"mode": "forward", "n": case.n + STEPS})
        made = [make_inputs(whole, variant) for variant in (0, 1)]
        self._inputs = [tuple(x.to(self.device) for x in (one.q, one.k, one.v)) for one in made]
        self._steps = [list(zip(*(x[:, :, case.n :].split(1, 2) for x in one), strict=True)) for one in self._inputs]
        for block in zip(*(x[:, :, : case.n].split(FILL, 2) for x in self._inputs[0]), strict=True):
            stream.extend(*block)
        self._filled = stream
        self.rewind()

    def call(self, variant: int) -> Tensor:
        """The last token's output."""
        *before, last = self._steps[variant]
        for step in before:
            self._stream.extend(*step)
        self._appended.append(variant)
        self._seen = self._stream.layer.positions if isinstance(self._stream, BoundedStream) else None
        return self._stream.extend(*last)

    def rewind(self) -> int:
        """Back to the prompt after every call, so that the length measured stays what it is."""
        self._stream = copy.deepcopy(self._filled)
        self._appended: list[int] = []
        return 1

    def check(self, variant: int, answer: Any) -> Finding:
        """Against softmax in float64 over what the stream held, as it says itself before the last token."""
        if wrong := gate.not_finite(answer):
            return Finding(wrong=wrong)
        q, k, v = self._inputs[variant][0][:, :, -1:], self._sequence(1), self._sequence(2)
        visible = self._visible().repeat_interleave(q.shape[1] // k.shape[1], dim=1)
        error = gate.relative_error(answer, softmax_attention(q, k, v, visible, self._scale))
        return Finding({"naive_error": error}, gate.disagrees(error, self._tolerance, "softmax over what it kept"))

    def facts(self, *, thorough: bool) -> Facts:
        """Comparisons are the last token's."""
        del thorough
        pairs = float(self._visible().sum()) * self._case.heads / self._case.kv_heads
        kernel = "full" if self._seen is None else "bounded"
        return Facts(kernel=kernel, state_bytes=self._filled.state_bytes, comparisons=pairs)

    def _sequence(self, which: int) -> Tensor:
        """Keys (1) or values (2) of the prompt and of all that was appended."""
        n = self._case.n
        return torch.cat(
            [self._inputs[0][which][:, :, :n], *(self._inputs[i][which][:, :, n:] for i in self._appended)], 2
        )

    def _visible(self) -> Bool[Tensor, "B G 1 N"]:
        """What the last token may look at, itself included."""
        N = self._case.n + STEPS * len(self._appended)
        shape = (self._case.batch, self._case.kv_heads, 1, N)
        if self._seen is None:
            return torch.ones(shape, dtype=torch.bool, device=self.device)
        visible = torch.zeros(shape, dtype=torch.bool, device=self.device)
        visible[:, :, 0].scatter_(2, self._seen, value=True)
        visible[..., -1] = True
        return visible
