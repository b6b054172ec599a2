"""How many tokens a layer may keep, and how they are shared out."""

from __future__ import annotations

from dataclasses import dataclass

from attentions.base import require


@dataclass(frozen=True)
class Budget:
    """`total` tokens of every layer and head: anchors and local window `total // divisor` each, the rest global memory.

    Anchors are a sequence's first tokens, the local window its latest; a strategy chooses what the global memory keeps.
    Raises ValueError for a divisor below 3 (nothing would be left for the global memory) and for a total that leaves
    one of the three parts empty.
    """

    total: int
    divisor: int = 4

    def __post_init__(self) -> None:
        require(self.divisor >= 3, "protection_divisor", self.divisor, "an integer of at least 3")
        require(self.total >= self.divisor, "budget", self.total, f"at least protection_divisor={self.divisor} tokens")

    @classmethod
    def of_ratio(cls, ratio: float, tokens: int, divisor: int = 4) -> Budget:
        """The budget that keeps `ratio` of so many tokens, and never less than one token for each part.

        Raises ValueError for a ratio outside (0, 1].
        """
        require(0 < ratio <= 1, "compression_ratio", ratio, "above 0 and at most 1: the share of tokens that is kept")
        return cls(max(divisor, int(ratio * tokens)), divisor)

    @property
    def anchors(self) -> int:
        """First tokens that are never dropped."""
        return self.total // self.divisor

    @property
    def window(self) -> int:
        """Latest tokens that are never dropped."""
        return self.total // self.divisor

    @property
    def memory(self) -> int:
        """Tokens between those two that the strategy may keep."""
        return self.total - self.anchors - self.window
