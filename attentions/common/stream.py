"""Decoding: the checks and the interface of every decoding state. Subclasses define what is kept."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from attentions.common.call import check_call, empty_output
from attentions.common.inputs import check_index, lasting, one_dtype, whole_vectors
from transformer_vq.precision import without_autocast

if TYPE_CHECKING:
    from attentions.base import Attention


class Stream(ABC):
    """Decoding: attention over a sequence that arrives in pieces.

    Subclasses implement `advance`, `select` and `state_bytes`. What they keep is never an inference tensor, so a stream
    may be filled under `torch.inference_mode` and continued outside it, and the other way round.
    """

    def __init__(self, attention: Attention, batch: int) -> None:
        self.batch = batch
        self._checks, self._dtype = attention, None

    _checks: Attention
    _dtype: torch.dtype | None  # of the first piece

    def extend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Append T >= 1 tokens, q (B, H, T, D), k (B, G, T, D), v (B, G, T, E), and return their rows (B, H, T, E).

        However a sequence is split, the rows equal those of `forward`. Raises ValueError for inputs that do not fit the
        attention, for a batch other than the stream's and, except under autocast, for a dtype other than the first
        piece's.
        """
        q, k, v = one_dtype(q, k, v, dtype=self._dtype)
        check_call(self._checks, q, k, v)
        if len(q) != self.batch:
            raise ValueError(f"q has a batch of {len(q)}: the stream was created for {self.batch}")
        if q.shape[2] != k.shape[2] or q.shape[2] == 0:
            raise ValueError(
                f"{q.shape[2]} queries and {k.shape[2]} keys: a piece needs as many queries as keys, and at least one"
            )
        if q.dtype != (self._dtype or q.dtype):
            raise ValueError(f"q is {q.dtype}: the stream holds {self._dtype}")
        self._dtype = q.dtype
        if self.batch == 0:
            return empty_output(self._checks, q, k, v)
        with lasting():
            q, k, v = (x.clone() if x.is_inference() else x for x in whole_vectors(q, k, v))
            with without_autocast(q.device):
                return self.advance(q, k, v)

    def reorder(self, index: Tensor) -> None:
        """Keep the sequences given by `index` (B,), in its order (beam search).

        Raises ValueError for an index that is not a vector of integers from 0 to the batch size - 1.
        """
        check_index("index", index, self.batch)
        with lasting():
            self.select(index.clone() if index.is_inference() else index)
        self.batch = len(index)

    @abstractmethod
    def advance(
        self, q: Float[Tensor, "B H T D"], k: Float[Tensor, "B G T D"], v: Float[Tensor, "B G T E"]
    ) -> Float[Tensor, "B H T E"]:
        """Implement `extend`; the inputs have been checked."""

    @abstractmethod
    def select(self, index: Int[Tensor, " B"]) -> None:
        """Implement `reorder`; the index has been checked."""

    @property
    @abstractmethod
    def state_bytes(self) -> int:
        """Size of the current state in bytes."""
