"""Compression modes: when a layer must drop tokens, and down to how many.

`recursive`: the global memory is selected again from its content and the new tokens each time there are too many.
`accumulate`: every part of the context gets its share of the global memory, selected once, when the part leaves the
local window, and not revisited. Both hold at most the budget at rest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from attentions.common.settings import require

if TYPE_CHECKING:
    from bmrt.cache.budget import Budget

Mode = Literal["recursive", "accumulate"]
MODES: tuple[str, ...] = ("recursive", "accumulate")
DECODING_SHARE = 16  # the default slack is the budget divided by this


@dataclass(frozen=True)
class CompressionPlan:
    """Token bounds of a layer.

    `context_tokens`: the number of tokens over which `accumulate` spreads the global memory; later tokens pass through
    the local window only. `slack`: when at most this many tokens arrive at once, as in decoding, room is made for this
    many more, so that not every token costs a selection. Raises ValueError for values that leave no global memory.
    """

    budget: Budget
    mode: str = "recursive"
    context_tokens: int | None = None
    slack: int | None = None

    def __post_init__(self) -> None:
        require(self.mode in MODES, "compression_mode", self.mode, f"one of {', '.join(MODES)}")
        if self.slack is not None:
            allowed = f"from 0 to {self.budget.memory - 1}, below the global memory's size"
            require(0 <= self.slack < self.budget.memory, "slack", self.slack, allowed)
        if self.mode == "accumulate":
            allowed = "the expected length, at least 1, since compression_mode='accumulate' divides its memory over it"
            require((self.context_tokens or 0) >= 1, "context_tokens", self.context_tokens, allowed)

    @property
    def room(self) -> int:
        """Number of extra tokens to drop when few arrive at once."""
        return min(self.budget.total // DECODING_SHARE, self.budget.memory - 1) if self.slack is None else self.slack

    def bound(self, seen: int) -> int:
        """Return the most tokens that a layer holds at rest after `seen` tokens.

        In `recursive`, this is the budget. In `accumulate`, with a anchors, w window, g memory, and s slack:
        a + w + min(g - s, ⌈(g - s)·(seen - a - w) / (context_tokens - a - w)⌉) + s.
        """
        return min(seen, self.limits(seen, arrived=1)[0])

    def limits(self, seen: int, arrived: int) -> tuple[int, int]:
        """Return the number of tokens above which a layer drops some, and how many it keeps then."""
        total, fixed = self.budget.total, self.budget.anchors + self.budget.window
        if self.mode == "recursive":
            return total, total if arrived > self.room else total - self.room
        assert self.context_tokens is not None
        memory = self.budget.memory - self.room
        earned = -(-memory * max(0, seen - fixed) // max(1, self.context_tokens - fixed))
        share = fixed + min(memory, earned)
        return share + self.room, share
