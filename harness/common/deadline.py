"""Time limits, on a clock that never goes back. To measure how long something takes, use `harness.measure`."""

from __future__ import annotations

import time


class Start:
    """The moment at which it was created, for a time limit that becomes known only later."""

    def __init__(self) -> None:
        self.at_s = time.monotonic()


class Deadline:
    """The end of a time limit of `seconds`, which begins at `start` or else now."""

    def __init__(self, seconds: float, start: Start | None = None) -> None:
        self._at_s = (start or Start()).at_s + seconds

    def left_s(self) -> float:
        """Return the seconds until the deadline; negative once it has passed."""
        return self._at_s - time.monotonic()

    def passed(self) -> bool:
        """Return whether no time is left."""
        return self.left_s() <= 0.0
