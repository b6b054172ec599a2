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

from attentions.stopping import AGAIN, SIGNALS, is_of_command


class Interruption:
    """While this context is open, `asked` says whether either signal has come. Only the main thread can open it.

    In a command (see `attentions.stopping`) that has been asked, both signals are ignored afterwards: it is ending.
    """

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
        # In a command, what could not be raised before is noted here.
        numbers = (*SIGNALS, AGAIN) if is_of_command(signal.getsignal(AGAIN)) else SIGNALS
        self._before = {number: signal.signal(number, self._note) for number in numbers}
        self._mask = signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_IGN if self.asked and is_of_command(handler) else handler)
        signal.set_wakeup_fd(self._woken)
        os.close(self._heard)
        os.close(self._tell)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
