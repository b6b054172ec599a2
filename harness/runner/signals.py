"""Note Ctrl-C and SIGTERM when they arrive, and act on them where it is safe.

An exception raised from a signal handler may hit anywhere: in an import, which then breaks; in a finaliser, which
swallows it; or between measuring a row and writing it. So the handler raises nothing. Code that waits also waits for
`fileno`, and code that works calls `check` between steps.
"""

from __future__ import annotations

import contextlib
import os
import signal
from types import FrameType, TracebackType

from attentions.common.stopping import AGAIN, SIGNALS, is_of_command


class Interruption:
    """While this context is open, `asked` is True once either signal has arrived. Only the main thread can open it.

    If a signal arrived in a command (see `attentions.common.stopping`), both signals are ignored after the context
    closes, because the command is ending.
    """

    def __init__(self) -> None:
        self.asked = False

    def check(self) -> None:
        """Raise KeyboardInterrupt if a signal has arrived since the context was opened.

        Any other signal that Python handles, such as a child's end, also makes `fileno` readable until this is called.
        """
        with contextlib.suppress(BlockingIOError):
            os.read(self._heard, 2**16)
        if self.asked:
            os.write(self._tell, b"\0")  # wake the next waiter too
            raise KeyboardInterrupt

    def fileno(self) -> int:
        """Return a file descriptor that is readable once a signal has arrived in any thread."""
        return self._heard

    def __enter__(self) -> Interruption:
        self._heard, self._tell = os.pipe()
        for end in (self._heard, self._tell):
            os.set_blocking(end, False)
        self._woken = signal.set_wakeup_fd(self._tell, warn_on_full_buffer=False)
        # In a command, signals that could not be raised earlier arrive here again as `AGAIN`.
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
