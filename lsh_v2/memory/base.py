"""What a long-term memory is: a bounded state that takes in the tokens that leave the window.

A state is a plain value that belongs to one pass over one batch, never to the module, so that the parallel form, a
stream and a recomputation in the backward pass cannot disturb each other. None is the empty state.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


class Tokens(NamedTuple):
    """Keys with position, values, and keys without position, oldest first."""

    k: Float[Tensor, "B G T D"]
    v: Float[Tensor, "B G T E"]
    bare_k: Float[Tensor, "B G T F"]

    @property
    def length(self) -> int:
        """T."""
        return self.k.shape[2]

    def pick(self, index: Int[Tensor, "B G T"]) -> Tokens:
        """The tokens that `index` names, for each key/value head its own."""
        return Tokens(*(x.gather(2, index.unsqueeze(-1).expand(-1, -1, -1, x.shape[-1])) for x in self))


def join(*parts: Tokens | None) -> Tokens:
    """Tokens one part after the other; at least one part is not None."""
    given = [part for part in parts if part is not None]
    return given[0] if len(given) == 1 else Tokens(*(torch.cat(same, dim=2) for same in zip(*given, strict=True)))


class Memory(nn.Module, ABC):
    """One kind of memory. It is read by adding slots to the attention's keys, by changing its output, or both."""

    @abstractmethod
    def absorb(self, state: Any, leaving: Tokens, q: Float[Tensor, "B H N D"]) -> tuple[Any, Tokens | None]:
        """The state after the tokens that leave, and the tokens to hand to the next memory, None for none.

        `q` are the queries of the segment that leaves: the past of every later token.
        """

    def slots(self, state: Any) -> Tokens | None:
        """Keys and values that later segments attend to beside their own."""
        del state
        return None

    def merge(
        self, state: Any, bare_q: Float[Tensor, "B H N F"], out: Float[Tensor, "B H N E"]
    ) -> Float[Tensor, "B H N E"]:
        """The attention's output with what the memory holds mixed in; unchanged while the memory is empty."""
        del state, bare_q
        return out

    def select(self, state: Any, index: Int[Tensor, " B"]) -> Any:
        """The state of the sequences that `index` names."""
        if state is None:
            return None
        return type(state)(*(x if x.ndim < 2 else x.index_select(0, index) for x in state))

    def state_bytes(self, state: Any) -> int:
        """Bytes that a state holds."""
        return 0 if state is None else sum(x.numel() * x.itemsize for x in state)
