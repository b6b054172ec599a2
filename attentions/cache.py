"""A key/value cache that grows by doubling, and the decoding state of methods that keep every token."""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor

from attentions.base import Attention, Stream
from attentions.inputs import lasting


class Growing:
    """A tensor (B, G, length, width) that is appended to along its length in amortised linear time.

    It is no inference tensor, so that one begun under `torch.inference_mode` can be appended to without.
    """

    def __init__(self) -> None:
        self._buffer: Tensor | None = None
        self._length = 0

    def append(self, piece: Float[Tensor, "B G T W"]) -> Float[Tensor, "B G M W"]:
        """Add T positions and return all of them; values already returned stay as they are."""
        end = self._length + piece.shape[2]
        if self._buffer is None or end > self._buffer.shape[2]:
            with lasting():
                roomy = piece.new_empty(*piece.shape[:2], 2 * end, piece.shape[3])
            if self._buffer is not None:
                roomy[:, :, : self._length] = self.filled
            self._buffer = roomy
        self._buffer[:, :, self._length : end] = piece
        self._length = end
        return self.filled

    @property
    def filled(self) -> Tensor:
        """What has been appended so far."""
        assert self._buffer is not None, "nothing was appended yet"
        return self._buffer[:, :, : self._length]

    def select(self, index: Int[Tensor, " B"]) -> None:
        """Keep the sequences that `index` names."""
        if self._buffer is not None:
            with lasting():
                self._buffer = self._buffer.index_select(0, index)

    @property
    def bytes(self) -> int:
        """Bytes of what was appended; the room kept for growth is not counted."""
        return 0 if self._buffer is None else self.filled.numel() * self._buffer.itemsize


class CachedStream(Stream):
    """Keeps all keys and values and runs the attention's `forward` on the new queries (N <= M)."""

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
