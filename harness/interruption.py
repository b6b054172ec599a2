"""Ctrl-C and SIGTERM, remembered: an exception alone can be lost where it falls into a finaliser, which swallows it."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interruption:
    """Both signals raise KeyboardInterrupt while this context is open; `check` raises it again if that went unheard."""

    def __init__(self) -> None:
        self._asked = False

    def check(self) -> None:
        """Raises KeyboardInterrupt if a signal has come since the context was opened."""
        if self._asked:
            raise KeyboardInterrupt

    def __enter__(self) -> Interruption:
        self._before = [signal.signal(number, self._interrupt) for number in SIGNALS]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        for number, handler in zip(SIGNALS, self._before, strict=True):
            signal.signal(number, handler)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        self._asked = True
        raise KeyboardInterrupt
