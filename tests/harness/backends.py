"""Attentions for the harness to judge, named by import path: one that is right, and one for each way to be wrong.

None stands in `attentions.BACKENDS`; all attend as softmax attention does unless their name says otherwise.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from attentions import Attention, Cost, Problem, Stream


def softmax(q: Tensor, k: Tensor, v: Tensor, scale: float, *, causal: bool) -> Tensor:
    """Two matrices of scores, as in the definition; heads in groups share a key head."""
    group = q.shape[1] // k.shape[1]
    scores = (q * scale) @ k.repeat_interleave(group, 1).transpose(2, 3)
    if causal:
        future = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).triu(k.shape[2] - q.shape[2] + 1)
        scores.masked_fill_(future, torch.finfo(q.dtype).min)
    return torch.softmax(scores, -1) @ v.repeat_interleave(group, 1)


class Right(Attention):
    paper = "https://example.org/right"
    exact = True
    claimed_time = "n^2"

    def forward(self, q: Tensor, k: Tensor, v: Tensor, *, first: Tensor | None = None) -> Tensor:
        return softmax(q, k, v, self.scale, causal=self.causal)


class Inexact(Right):
    """Claims to be an approximation with its own definition: every value counts half."""

    exact = False

    def forward(self, q: Tensor, k: Tensor, v: Tensor, *, first: Tensor | None = None) -> Tensor:
        return super().forward(q, k, v) / 2

    def naive(self, q: Tensor, k: Tensor, v: Tensor, **rows: Any) -> Tensor:
        return super().naive(q, k, v, **rows) / 2


class AddsOneHundredth(Right):
    def forward(self, q: Tensor, k: Tensor, v: Tensor, *, first: Tensor | None = None) -> Tensor:
        return super().forward(q, k, v) + 1e-2


class NotFinite(Right):
    """One number of one row that no sample may happen to see."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, *, first: Tensor | None = None) -> Tensor:
        out = super().forward(q, k, v)
        out[0, 0, 5, 0] = torch.nan
        return out


class WrongType(Right):
    def forward(self, q: Tensor, k: Tensor, v: Tensor, *, first: Tensor | None = None) -> Tensor:
        return super().forward(q, k, v).double()


class SecondSetOnly(Right):
    """Right until it sees other inputs: keeps its first answer."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, *, first: Tensor | None = None) -> Tensor:
        if not hasattr(self, "kept") or self.kept.shape[2] != q.shape[2]:
            self.kept = super().forward(q, k, v)
        return self.kept


class TurnsWrong(Right):
    """Right for its first calls."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, *, first: Tensor | None = None) -> Tensor:
        self.calls = getattr(self, "calls", 0) + 1
        return super().forward(q, k, v) * (1.0 if self.calls < 12 else 1.1)


class Leaking(Right):
    """Its output and its definition agree, and both see the mean of all values, future ones too."""

    exact = False

    def forward(self, q: Tensor, k: Tensor, v: Tensor, *, first: Tensor | None = None) -> Tensor:
        return super().forward(q, k, v) + v.mean(2, keepdim=True)

    def naive(self, q: Tensor, k: Tensor, v: Tensor, **rows: Any) -> Tensor:
        return super().naive(q, k, v, **rows) + v.double().mean(2, keepdim=True)


class LeakingBySelection(Leaking):
    causality = "selection"


class WrongGradient(Right):
    def forward(self, q: Tensor, k: Tensor, v: Tensor, *, first: Tensor | None = None) -> Tensor:
        return super().forward(q.detach() + 0.5 * (q - q.detach()), k, v)


class Cannot(Right):
    def why_not(self, problem: Problem) -> str:
        return "it only runs on Sundays"


class TooFast(Right):
    """Says that it computes more than any machine can."""

    def cost(self, problem: Problem) -> Cost:
        return Cost(flops=10**18, comparisons=1, state_bytes=1)


class Growing(Stream):
    """Keeps everything. `drift` is added to each row that it gives."""

    def __init__(self, attention: Attention, batch: int, drift: float) -> None:
        super().__init__(attention, batch)
        self.attention, self.drift = attention, drift
        self.k, self.v = torch.empty(0), torch.empty(0)

    def advance(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        self.k = torch.cat([self.k, k], 2) if self.k.numel() else k
        self.v = torch.cat([self.v, v], 2) if self.v.numel() else v
        return softmax(q, self.k, self.v, self.attention.scale, causal=True) + self.drift

    def select(self, index: Tensor) -> None:
        self.k, self.v = self.k[index], self.v[index]

    @property
    def state_bytes(self) -> int:
        return (self.k.numel() + self.v.numel()) * self.k.itemsize


class Streaming(Right):
    def stream(self, batch: int) -> Stream | None:
        return Growing(self, batch, 0.0)


class StreamingWrong(Right):
    def stream(self, batch: int) -> Stream | None:
        return Growing(self, batch, 1e-2)


class Faulty(Right):
    """Right on the few tokens that warm it up; then `fault`. Not a backend itself."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, *, first: Tensor | None = None) -> Tensor:
        if q.shape[2] > 128:
            self.fault()
        return super().forward(q, k, v)

    def fault(self) -> None:
        raise NotImplementedError


class NotToBeBuilt(Right):
    def __init__(self, heads: int, head_dim: int, **shape: Any) -> None:
        raise LookupError("no such thing")


class Immense(Right):
    def __init__(self, heads: int, head_dim: int, **shape: Any) -> None:
        super().__init__(heads, head_dim, **shape)
        self.weight = torch.empty(2**60)


class Raising(Faulty):
    def fault(self) -> None:
        raise ArithmeticError("two and two made <b>five</b>")


class Hanging(Faulty):
    """Holds Python's lock, so that no thread of its own process could end it."""

    def fault(self) -> None:
        ctypes.PyDLL(None).sleep(100)


class KillingItself(Faulty):
    def fault(self) -> None:
        print("these were its last words", flush=True)
        os.kill(os.getpid(), signal.SIGSEGV)


class ExitingQuietly(Faulty):
    def fault(self) -> None:
        os._exit(0)


class WritingGarbage(Faulty):
    """Writes to everything that is open, the pipe of the answer among it."""

    def fault(self) -> None:
        for file in Path("/proc/self/fd").iterdir():
            try:
                os.write(int(file.name), b"\xff\x00garbage\n" * 100)
            except OSError:
                continue
        os._exit(0)


class PrintingGarbage(Faulty):
    """Harmless, but noisy: not UTF-8, no line ends."""

    def fault(self) -> None:
        for _ in range(100):
            sys.stdout.buffer.write(b"\xff\xfe\x00\x1b[31m" * 1000)
        sys.stdout.flush()


class Hungry(Faulty):
    def fault(self) -> None:
        self.held = [torch.ones(2**28) for _ in range(10_000)]


class HungryDefinition(Right):
    """Its definition takes a gigabyte, itself it does not."""

    def naive(self, q: Tensor, k: Tensor, v: Tensor, **rows: Any) -> Tensor:
        torch.ones(2**28)
        return super().naive(q, k, v, **rows)


class Counting(Right):
    """Takes more than a second a call; `kernel` tells how many calls were made beside the small one."""

    kernel = ""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, *, first: Tensor | None = None) -> Tensor:
        if q.shape[2] > 128:
            self.calls = getattr(self, "calls", 0) + 1
            self.kernel = f"{self.calls} calls"
            time.sleep(1.1)
        return super().forward(q, k, v)


class Slow(Right):
    """Takes its time, for tests that need to interrupt a sweep."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, *, first: Tensor | None = None) -> Tensor:
        time.sleep(0.03)
        return super().forward(q, k, v)


class Calibrated(Right):
    """Is wrong unless it was shown a sample first."""

    shown = False

    def prepare(self, q: Tensor, k: Tensor, v: Tensor) -> None:
        self.shown = True

    def forward(self, q: Tensor, k: Tensor, v: Tensor, *, first: Tensor | None = None) -> Tensor:
        return super().forward(q, k, v) * self.shown


class Learns(Right):
    """Is wrong unless it was shown a sample first, or has the state of one that was. `lessons` counts samples."""

    lessons = 0

    def __init__(self, heads: int, head_dim: int, **shape: Any) -> None:
        super().__init__(heads, head_dim, **shape)
        self.register_buffer("shown", torch.tensor(0.0))

    shown: Tensor

    def prepare(self, q: Tensor, k: Tensor, v: Tensor) -> None:
        type(self).lessons += 1
        self.shown.fill_(1.0)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, *, first: Tensor | None = None) -> Tensor:
        return super().forward(q, k, v) * self.shown


class Staged(Right):
    """Two stages, of which one claims three quarters of the time and another exponent."""

    claimed_components = {"scores": (0.75, 0.5)}  # noqa: RUF012

    def components(self, q: Tensor, k: Tensor, v: Tensor) -> Mapping[str, Callable[[], object]]:
        return {"scores": lambda: q @ k.mT, "output": lambda: [self(q, k, v)]}


class Learning(Staged):
    """Its first stage gives what it learnt."""

    def __init__(self, *sizes: Any, **settings: Any) -> None:
        super().__init__(*sizes, **settings)
        self.learnt = torch.nn.Parameter(torch.zeros(()), requires_grad=False)

    def prepare(self, q: Tensor, k: Tensor, v: Tensor) -> None:
        self.learnt.data = q.sum()

    def components(self, q: Tensor, k: Tensor, v: Tensor) -> Mapping[str, Callable[[], object]]:
        return {"learnt": lambda: self.learnt + q[0, 0, 0, 0]}

    def why_not(self, problem: Problem) -> str:
        return "it is too long" if problem.keys > 100 else super().why_not(problem)
