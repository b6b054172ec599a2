"""A tensor that grows by doubling, for keys and values of a sequence that arrives in pieces."""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor

from attentions.common.inputs import lasting


class Growing:
    """A tensor (B, G, length, width) that can be appended to along its length in amortised linear time.

    It is never an inference tensor, so it can be filled under `torch.inference_mode` and appended to outside it.
    """

    def __init__(self) -> None:
        self._buffer: Tensor | None = None
        self._length = 0

    def append(self, piece: Float[Tensor, "B G T W"]) -> Float[Tensor, "B G M W"]:
        """Append T positions and return all positions; tensors returned earlier are not changed."""
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
        """All positions appended so far."""
        assert self._buffer is not None, "nothing has been appended yet"
        return self._buffer[:, :, : self._length]

    def select(self, index: Int[Tensor, " B"]) -> None:
        """Keep the sequences given by `index`."""
        if self._buffer is not None:
            with lasting():
                self._buffer = self._buffer.index_select(0, index)

    @property
    def bytes(self) -> int:
        """Bytes of the appended data; memory reserved for growth is not counted."""
        return 0 if self._buffer is None else self.filled.numel() * self._buffer.itemsize
