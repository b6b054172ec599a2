"""Interface of long-term memories: a bounded state that absorbs the tokens that leave the window.

A state is a plain value that belongs to one pass over one batch, not to the module, so that the parallel form, a
stream, and a recomputation in the backward pass cannot interfere. None is the empty state.
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
        """Number of tokens, T."""
        return self.k.shape[2]

    def pick(self, index: Int[Tensor, "B G T"]) -> Tokens:
        """Select tokens by `index`, separately for each key/value head."""
        return Tokens(*(x.gather(2, index.unsqueeze(-1).expand(-1, -1, -1, x.shape[-1])) for x in self))


def join(*parts: Tokens | None) -> Tokens:
    """Concatenate tokens along the sequence, skipping None; at least one part must not be None."""
    given = [part for part in parts if part is not None]
    return given[0] if len(given) == 1 else Tokens(*(torch.cat(same, dim=2) for same in zip(*given, strict=True)))


class Memory(nn.Module, ABC):
    """Base class of memories. A memory adds slots to the attention's keys, changes its output, or both."""

    @abstractmethod
    def absorb(self, state: Any, leaving: Tokens, q: Float[Tensor, "B H N D"]) -> tuple[Any, Tokens | None]:
        """Return the state after absorbing the leaving tokens, and the tokens for the next memory (None for none).

        `q` are the queries of the leaving segment; all of it is in the past of every later token.
        """

    def slots(self, state: Any) -> Tokens | None:
        """Return the keys and values that later segments attend to in addition to their own."""
        del state
        return None

    def merge(
        self, state: Any, bare_q: Float[Tensor, "B H N F"], out: Float[Tensor, "B H N E"]
    ) -> Float[Tensor, "B H N E"]:
        """Mix the memory's content into the attention's output; unchanged while the memory is empty."""
        del state, bare_q
        return out

    def select(self, state: Any, index: Int[Tensor, " B"]) -> Any:
        """Return the state of the sequences in `index`."""
        if state is None:
            return None
        return type(state)(*(x if x.ndim < 2 else x.index_select(0, index) for x in state))

    def state_bytes(self, state: Any) -> int:
        """Size of a state in bytes."""
        return 0 if state is None else sum(x.numel() * x.itemsize for x in state)
