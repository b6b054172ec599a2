"""Ctrl-C and SIGTERM, noted where they fall and acted upon where that is safe.

An exception raised from a signal handler may fall anywhere: into an import, which then breaks; into a finaliser, which
swallows it; between a row's measuring and its writing. So the handler raises nothing. Whoever waits also waits for
`fileno`, and whoever works calls `check` between two steps.
"""

from __future__ import annotations

import contextlib
import os
import signal
from types import FrameType, TracebackType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


def hold() -> None:
    """Let no signal reach this process before an `Interruption`, which hears it, nor afterwards, when it is ignored.

    For commands: otherwise a signal while Python ends would print a traceback or change the exit status.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)


class Interruption:
    """While this context is open, `asked` says whether either signal has come. Only the main thread can open it."""

    def __init__(self) -> None:
        self.asked = False

    def check(self) -> None:
        """Raises KeyboardInterrupt if a signal has come since the context was opened.

        Any other signal that Python hears, such as a child's end, makes `fileno` readable too, until this is called.
        """
        with contextlib.suppress(BlockingIOError):
            os.read(self._heard, 2**16)
        if self.asked:
            os.write(self._tell, b"\0")  # whoever waits next is woken too
            raise KeyboardInterrupt

    def fileno(self) -> int:
        """A file that is readable once a signal has come, whichever thread it has reached."""
        return self._heard

    def __enter__(self) -> Interruption:
        self._heard, self._tell = os.pipe()
        for end in (self._heard, self._tell):
            os.set_blocking(end, False)
        self._woken = signal.set_wakeup_fd(self._tell, warn_on_full_buffer=False)
        self._before = [signal.signal(number, self._note) for number in SIGNALS]
        self._mask = signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)
        for number, handler in zip(SIGNALS, self._before, strict=True):
            # A mask holds for this thread alone, and there may be others by now.
            signal.signal(number, signal.SIG_IGN if number in self._mask else handler)
        signal.set_wakeup_fd(self._woken)
        os.close(self._heard)
        os.close(self._tell)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
