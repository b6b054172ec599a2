"""Token budgets of a layer and their division into anchors, local window, and global memory."""

from __future__ import annotations

from dataclasses import dataclass

from attentions.common.settings import require


@dataclass(frozen=True)
class Budget:
    """`total` tokens per layer and head: anchors and local window get `total // divisor` each, global memory the rest.

    Anchors are a sequence's first tokens, the local window its latest; a strategy selects what the global memory keeps.
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
        """Return the budget that keeps `ratio` of `tokens` tokens, with at least one token for each part.

        Raises ValueError for a ratio outside (0, 1].
        """
        require(0 < ratio <= 1, "compression_ratio", ratio, "above 0 and at most 1 (the share of tokens to keep)")
        return cls(max(divisor, int(ratio * tokens)), divisor)

    @property
    def anchors(self) -> int:
        """Number of first tokens that are never dropped."""
        return self.total // self.divisor

    @property
    def window(self) -> int:
        """Number of latest tokens that are never dropped."""
        return self.total // self.divisor

    @property
    def memory(self) -> int:
        """Number of tokens between the two that the strategy may keep."""
        return self.total - self.anchors - self.window
