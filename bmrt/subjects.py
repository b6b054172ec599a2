"""Harness subject for the cost of decoding with a bounded cache, and with a full one for comparison.

    python -m harness.sweep bmrt/decode.yml

A case produces a row like any other: time and memory of appending `STEPS` tokens after n, one at a time, and the bytes
of the state. A bounded cache makes room only now and then, for several tokens at once, so the cost of a single token
would be far too low or too high. `bmrt.cache.attention:BoundedAttention` has a budget and a strategy; any other backend
with a stream serves as the full cache.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool
from torch import Tensor

from attentions.common.reference import softmax_attention
from bmrt.cache.attention import BoundedAttention, BoundedStream
from harness.inputs import make_inputs
from harness.measure import gate
from harness.subjects.base import CheckResult, Facts, Trial, Unsupported
from harness.subjects.instantiate import build_attention

if TYPE_CHECKING:
    from attentions.common.stream import Stream
    from harness.common.rows import Case
    from harness.subjects.references import Store

FILL = 512  # prompt tokens per block
STEPS = 128  # tokens decoded per call


class DecodeSubject:
    """Decodes `STEPS` tokens after a prompt of n."""

    def setup(self, case: Case, store: Store, key: str) -> Trial:
        del store, key  # the store's inputs have one query, but a prompt needs all
        torch.set_grad_enabled(False)
        if case.mode != "decode" or case.level != "kernel":
            raise Unsupported("a cache is measured only in mode decode at kernel level")
        attention = build_attention(case)
        stream = attention.stream(case.batch)
        if stream is None or not (isinstance(attention, BoundedAttention) or attention.exact):
            raise Unsupported("it is neither a bounded cache nor an exact attention with a stream")
        return DecodeTrial(stream, attention.scale, attention.tolerance[getattr(torch, case.dtype)], case)


class DecodeTrial(Trial):
    """A stream filled with the prompt, and two continuations to append."""

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
        """Decode the continuation and return the last token's output."""
        *before, last = self._steps[variant]
        for step in before:
            self._stream.extend(*step)
        self._appended.append(variant)
        self._seen = self._stream.layer.positions if isinstance(self._stream, BoundedStream) else None
        return self._stream.extend(*last)

    def rewind(self) -> int:
        """Return to the prompt after every call, so that every call measures the same length."""
        self._stream = copy.deepcopy(self._filled)
        self._appended: list[int] = []
        return 1

    def check(self, variant: int, answer: Any) -> CheckResult:
        """Compare with float64 softmax over what the stream reported to hold before the last token."""
        if wrong := gate.not_finite(answer):
            return CheckResult(wrong=wrong)
        q, k, v = self._inputs[variant][0][:, :, -1:], self._sequence(1), self._sequence(2)
        visible = self._visible().repeat_interleave(q.shape[1] // k.shape[1], dim=1)
        error = gate.relative_error(answer, softmax_attention(q, k, v, visible, self._scale))
        return CheckResult({"naive_error": error}, gate.disagrees(error, self._tolerance, "softmax over its kept keys"))

    def facts(self, *, thorough: bool) -> Facts:
        """Return the facts of a row; comparisons are those of the last token."""
        del thorough
        pairs = float(self._visible().sum()) * self._case.heads / self._case.kv_heads
        kernel = "full" if self._seen is None else "bounded"
        return Facts(kernel=kernel, state_bytes=self._filled.state_bytes, comparisons=pairs)

    def _sequence(self, which: int) -> Tensor:
        """Return the keys (1) or values (2) of the prompt and of everything appended."""
        n = self._case.n
        return torch.cat(
            [self._inputs[0][which][:, :, :n], *(self._inputs[i][which][:, :, n:] for i in self._appended)], 2
        )

    def _visible(self) -> Bool[Tensor, "B G 1 N"]:
        """Mask of the tokens visible to the last token, including itself."""
        N = self._case.n + STEPS * len(self._appended)
        shape = (self._case.batch, self._case.kv_heads, 1, N)
        if self._seen is None:
            return torch.ones(shape, dtype=torch.bool, device=self.device)
        visible = torch.zeros(shape, dtype=torch.bool, device=self.device)
        visible[:, :, 0].scatter_(2, self._seen, value=True)
        visible[..., -1] = True
        return visible
