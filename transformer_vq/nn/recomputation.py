"""What a layer that learns as it runs needs to know of gradient checkpointing, which runs it again to differentiate it.

A pass draws a ticket from torch's global generator. Checkpointing puts that generator back to where it was before it
runs a function again (`preserve_rng_state`, its default), so that the pass and its recomputation draw the same ticket,
however many passes lie between the two.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor

REMEMBERED = 32  # passes that may wait for their backward pass at a time


def in_backward() -> bool:
    """Whether a backward pass is under way in this thread, so that a forward pass now is a recomputation."""
    return torch._C._current_graph_task_id() != -1


def draw_ticket() -> int:
    """A number of this pass and of its recomputation."""
    return int(torch.randint(2**62, ()))


class Passes:
    """What the latest passes used, by ticket."""

    def __init__(self) -> None:
        self._used: OrderedDict[int, Tensor] = OrderedDict()

    def keep(self, ticket: int, used: Tensor) -> None:
        """Remember what a pass used."""
        self._used[ticket] = used
        self._used.move_to_end(ticket)
        if len(self._used) > REMEMBERED:
            self._used.popitem(last=False)

    def find(self, ticket: int) -> Tensor:
        """What the pass used that is now run again.

        Raises RuntimeError where that is not known.
        """
        if ticket not in self._used:
            raise RuntimeError(
                "a training pass within a backward pass must be a recomputation by torch.utils.checkpoint with "
                f"preserve_rng_state=True, of one of the last {REMEMBERED} passes of this layer"
            )
        return self._used[ticket]
