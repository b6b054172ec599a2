"""Decoding state of methods that keep every token."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jaxtyping import Float, Int
from torch import Tensor

from attentions.common.growing import Growing
from attentions.common.stream import Stream

if TYPE_CHECKING:
    from attentions.base import Attention


class CachedStream(Stream):
    """Keeps all keys and values and calls the attention on the new queries (N <= M)."""

    def __init__(self, attention: Attention, batch: int) -> None:
        super().__init__(attention, batch)
        self._attention = attention
        self._keys, self._values = Growing(), Growing()

    def advance(
        self, q: Float[Tensor, "B H T D"], k: Float[Tensor, "B G T D"], v: Float[Tensor, "B G T E"]
    ) -> Float[Tensor, "B H T E"]:
        return self._attention(q, self._keys.append(k), self._values.append(v))

    def select(self, index: Int[Tensor, " B"]) -> None:
        self._keys.select(index)
        self._values.select(index)

    @property
    def state_bytes(self) -> int:
        return self._keys.bytes + self._values.bytes
