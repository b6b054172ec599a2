"""Streaming decode for the whole model: one state per layer, tied or not, and the current position."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lsh_v2.model.ponder import Chosen

if TYPE_CHECKING:
    from lsh_v2.model.language_model import LSHv2Model
    from lsh_v2.model.mixer import MixerStream


class ModelStream:
    """Takes tokens in pieces of any length and returns logits equal to those of the parallel form.

    With pondering, every pass runs for every token, because later tokens may need it; halting only selects the state
    that is read.
    """

    def __init__(self, model: LSHv2Model, layers: list[MixerStream]) -> None:
        self._model, self._layers = model, layers
        self.position = 0

    @torch.no_grad()
    def extend(self, input_ids: Int[Tensor, "B T"]) -> Float[Tensor, "B T V"]:
        """Append T tokens and return their logits. Raises ValueError past `max_seq_len`."""
        model, T = self._model, input_ids.shape[1]
        model.check(self.position + T)
        at, chosen = model.rotation(self.position, T), Chosen(model.stopping())
        x1 = x2 = model.embed(input_ids)
        sets, two = model.config.weight_sets, model.config.reversible
        for index, layer in enumerate(self._layers):
            block = model.block(index)
            x1 = (x1 if two else x2) + layer.extend(block.mixer_norm(x2), at)
            x2 = (x2 if two else x1) + block.feed(x1)
            if model.halting is not None and (index + 1) % sets == 0:
                state = model.read(x1, x2)
                chosen.offer(state, model.halting(state))
        self.position += T
        return model.head(model.read(x1, x2) if model.halting is None else chosen.state)

    def reorder(self, index: Int[Tensor, " B"]) -> None:
        """Keep the sequences in `index`, in that order (for beam search)."""
        for layer in self._layers:
            layer.reorder(index)

    @property
    def state_bytes(self) -> int:
        """Current size of all layers' states in bytes."""
        return sum(layer.state_bytes for layer in self._layers)
