"""Recognises recomputation by gradient checkpointing, for layers that learn during their forward pass.

Each pass draws a ticket from torch's global generator. Before it runs a function again, checkpointing restores the
state of that generator (`preserve_rng_state`, its default), so a pass and its recomputation draw the same ticket,
however many passes are between the two.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor

REMEMBERED = 32  # passes that may be waiting for their backward at once


def in_backward() -> bool:
    """Whether a backward pass is running in this thread, so that a forward pass now is a recomputation."""
    return torch._C._current_graph_task_id() != -1


def draw_ticket() -> int:
    """Draw a number that identifies a pass and its recomputation."""
    return int(torch.randint(2**62, ()))


class Passes:
    """Codebooks used by the latest passes, by ticket."""

    def __init__(self) -> None:
        self._used: OrderedDict[int, Tensor] = OrderedDict()

    def keep(self, ticket: int, used: Tensor) -> None:
        """Remember what a pass used."""
        self._used[ticket] = used
        self._used.move_to_end(ticket)
        if len(self._used) > REMEMBERED:
            self._used.popitem(last=False)

    def find(self, ticket: int) -> Tensor:
        """Return what the pass used that is now being recomputed.

        Raises RuntimeError if it is unknown.
        """
        if ticket not in self._used:
            raise RuntimeError(
                "a training pass inside a backward pass must be a recomputation by torch.utils.checkpoint with "
                f"preserve_rng_state=True, of one of the last {REMEMBERED} passes of this layer"
            )
        return self._used[ticket]
