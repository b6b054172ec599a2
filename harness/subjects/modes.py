"""What one call of an attention does in each mode, and what its definition says the answer should be.

A module is either an attention, called on (q, k, v), or the layer around one, called on (x,). In both cases rows are
the second-to-last axis of the output.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from jaxtyping import Int
from torch import Tensor, nn

from attentions.base import Attention
from attentions.buckets.support import SupportAttention
from attentions.recurrent.recurrence import Recurrence

if TYPE_CHECKING:
    from attentions.common.stream import Stream

WARM_TOKENS = 128
PREFILL_SCORES = 2**26  # query-key pairs per head while a stream is filled; bounds the memory of exact methods


@dataclass(frozen=True)
class Expected:
    """The definition's result at the checked rows: outputs and, in train mode, the gradient of the first input.

    `terms` is the norm of the terms that the gradient subtracts; 0 if not known.
    """

    rows: Tensor
    gradient: Tensor | None = None
    terms: float = 0.0


class Operation(ABC):
    """One mode of one module on two sets of inputs. `rows` are the query rows that are checked.

    `repeats` is True if every call on one set gives the same answer.
    """

    repeats: ClassVar[bool] = True

    def __init__(self, module: nn.Module, inputs: list[tuple[Tensor, ...]], rows: Int[Tensor, " R"]) -> None:
        self.module = module
        self.inputs = inputs
        self.rows = rows

    @abstractmethod
    def warm(self) -> None:
        """Make one call on a few tokens."""

    @abstractmethod
    def call(self, variant: int) -> Any:
        """Run the timed work."""

    @abstractmethod
    def expected(self, definition: Any, fresh: list[tuple[Tensor, ...]], variant: int) -> Expected:
        """Return what the latest call should have given, from `definition.naive` on the untouched inputs `fresh`.

        `definition` is this operation's module, or a copy of it on the device of `fresh`.
        """

    def attended(self, fresh: list[tuple[Tensor, ...]], variant: int) -> tuple[Tensor, ...]:
        """Return the complete inputs that the latest answer depends on, taken from the untouched inputs `fresh`."""
        return fresh[variant]

    def output(self, answer: Any) -> Tensor:
        """Return all output rows of an answer."""
        return answer

    def gradient(self, answer: Any) -> Tensor | None:
        """Return the gradient of the first input, or None."""
        del answer
        return None

    def rewind(self) -> int:
        """Like `Trial.rewind`."""
        return 2**31

    def checked(self, variant: int) -> Int[Tensor, " R"]:
        """Return the rows at which an answer is compared with the definition.

        The second set of inputs uses a quarter of them, because its first half is also compared with the first set's
        answer.
        """
        return self.rows if variant == 0 else self.rows[3::4] if len(self.rows) > 3 else self.rows


class Forward(Operation):
    """One forward call."""

    def warm(self) -> None:
        self.module(*(tensor[..., :WARM_TOKENS, :] for tensor in self.inputs[0]))

    def call(self, variant: int) -> Tensor:
        return self.module(*self.inputs[variant])

    def expected(self, definition: Any, fresh: list[tuple[Tensor, ...]], variant: int) -> Expected:
        return Expected(definition.naive(*fresh[variant], rows=self.checked(variant)))


class Train(Operation):
    """Forward and backward of sum(out · g), with g drawn once.

    g is zero except at the sampled rows, so the definition at these rows alone determines the gradient of every input,
    even for methods that also use queries as keys. No kernel benefits from these zeros.
    """

    def __init__(self, module: nn.Module, inputs: list[tuple[Tensor, ...]], rows: Int[Tensor, " R"]) -> None:
        leaves = [tuple(tensor.detach().requires_grad_() for tensor in group) for group in inputs]
        super().__init__(module, leaves, rows)
        self._g: Tensor | None = None

    def warm(self) -> None:
        out = self.module(*(tensor[..., :WARM_TOKENS, :] for tensor in self.inputs[0]))
        out.backward(torch.ones_like(out))
        full = out.new_zeros(*out.shape[:-2], self.inputs[0][0].shape[-2], out.shape[-1])
        drawn = torch.randn(*out.shape[:-2], len(self.rows), out.shape[-1], generator=torch.Generator().manual_seed(0))
        self._g = full.index_copy(-2, self.rows, drawn.to(full))

    def call(self, variant: int) -> tuple[Tensor, Tensor | None]:
        inputs = self.inputs[variant]
        for tensor in inputs:
            tensor.grad = None
        self.module.zero_grad(set_to_none=True)
        out = self.module(*inputs)
        out.backward(self._g)
        return out.detach(), inputs[0].grad

    def checked(self, variant: int) -> Int[Tensor, " R"]:
        return self.rows  # the gradient depends on all of them

    def output(self, answer: tuple[Tensor, Tensor]) -> Tensor:
        return answer[0]

    def gradient(self, answer: tuple[Tensor, Tensor]) -> Tensor:
        return answer[1]

    def expected(self, definition: Any, fresh: list[tuple[Tensor, ...]], variant: int) -> Expected:
        assert self._g is not None, "warm comes first"
        first = fresh[variant][0].detach().requires_grad_()
        rows = definition.naive(first, *fresh[variant][1:], rows=self.rows)
        g = self._g.index_select(-2, self.rows).to(rows)
        rows.backward(g)
        return Expected(rows.detach(), first.grad, _terms(definition, fresh[variant], rows.detach(), g))


def _terms(definition: Any, inputs: tuple[Tensor, ...], rows: Tensor, g: Tensor) -> float:
    """Return the norm of the term that softmax attention subtracts in the gradient of its queries.

    Row i of that gradient is scale · Σ p[i, j] · (g[i] · v[j] - g[i] · o[i]) · k[j]. The terms with o carry the
    rounding of the output; their size is computed with keys of root mean square length.
    """
    if not isinstance(definition, Attention) or isinstance(definition, Recurrence):  # nothing is normalised there
        return 0.0
    q, k = inputs[:2]
    keys = definition.target_keys(q, k) if isinstance(definition, SupportAttention) else k
    length = torch.linalg.vector_norm(keys, dim=-1, dtype=torch.float64).square().mean().sqrt()
    return (definition.scale * torch.linalg.vector_norm((g * rows).sum(-1)) * length).item()


class Decode(Operation):
    """One token appended to a stream that holds n tokens; the two sets of inputs alternate in providing the token.

    A few more tokens do not change the cost, so calls continue from one another until the stream has grown by an
    eighth.
    """

    repeats = False

    def __init__(
        self, module: Attention, inputs: list[tuple[Tensor, ...]], rows: Int[Tensor, " R"], tiny: Stream, stream: Stream
    ) -> None:
        super().__init__(module, inputs, rows)
        self._tiny = tiny
        self._length = inputs[0][1].shape[2] - 1
        self._fill(stream, self._length)
        self._filled = stream
        self._restore()

    @property
    def state_bytes(self) -> int:
        """Bytes of the current state."""
        return self._stream.state_bytes

    def warm(self) -> None:
        self._fill(self._tiny, min(self._length, WARM_TOKENS))
        self._tiny.extend(*self._token(0))

    def call(self, variant: int) -> Tensor:
        self._appended.append(variant)
        return self._stream.extend(*self._token(variant))

    def rewind(self) -> int:
        room = max(2, self._length // 8)
        if 2 * len(self._appended) > room:
            self._restore()
        return room - len(self._appended)

    def expected(self, definition: Any, fresh: list[tuple[Tensor, ...]], variant: int) -> Expected:
        return Expected(definition.naive(*self.attended(fresh, variant), rows=self.rows))

    def attended(self, fresh: list[tuple[Tensor, ...]], variant: int) -> tuple[Tensor, ...]:
        k, v = (
            torch.cat([fresh[0][i][:, :, : self._length], *(fresh[a][i][:, :, -1:] for a in self._appended)], dim=2)
            for i in (1, 2)
        )
        return fresh[variant][0], k, v

    def _token(self, variant: int) -> tuple[Tensor, ...]:
        return tuple(tensor[:, :, -1:] for tensor in self.inputs[variant])

    def _fill(self, stream: Stream, length: int) -> None:
        """Append the first tokens in pieces. Queries do not affect the state, so the last one stands in for all."""
        q, k, v = self.inputs[0]
        piece = max(1, min(length, PREFILL_SCORES // length))
        for start in range(0, length, piece):
            at = slice(start, min(start + piece, length))
            stream.extend(q.expand(-1, -1, at.stop - at.start, -1), k[:, :, at], v[:, :, at])

    def _restore(self) -> None:
        self._stream = copy.deepcopy(self._filled, {id(self.module): self.module})
        self._appended: list[int] = []
