"""How every command of the project ends on Ctrl-C and SIGTERM: one line, exit status 130, no traceback.

    from attentions.stopping import hold, interruptible

    if __name__ == "__main__":
        hold()

    import torch                      # whatever takes long to import comes later

    if __name__ == "__main__":
        sys.exit(interruptible(main))

Only the `__main__` parts of commands call these, never a library import and never `main` itself. Python's own ways
would be a traceback, also from the middle of an import, and for SIGTERM a death without a word or a finaliser.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)
AGAIN = signal.SIGALRM  # one of `SIGNALS` once more, which came at a bad moment
INTERRUPTED = 130
AGAIN_S = 0.02
IMPORT_S = 1.0  # an import that goes on for longer after a signal may hang


def hold() -> None:
    """Until `interruptible` begins, while modules are imported, either signal ends the process at once."""
    if threading.current_thread() is not threading.main_thread():  # a guest in another program, whose signals they are
        return
    for number in SIGNALS:
        signal.signal(number, _leave)


def interruptible(main: Callable[[], int | None]) -> int | None:
    """A command's exit status, to be the process's. Either signal raises KeyboardInterrupt within `main`, once.

    A `main` that catches it says itself what is kept. It is not raised within an import, which would leave the module
    half made, unless that goes on for more than `IMPORT_S`; what a finaliser swallows is raised again. Afterwards both
    signals are ignored, since what is left to do is to end, and a command that has done its work has done it. One that
    was interrupted and still waits for a thread ends at the next signal.
    """
    if threading.current_thread() is not threading.main_thread():
        return main()
    try:
        try:
            _listen()
            return main()
        finally:
            ignore()
    except KeyboardInterrupt:
        _say()
        for number in SIGNALS:
            signal.signal(number, lambda *_: os._exit(INTERRUPTED))
        return INTERRUPTED


def ignore() -> None:
    """Let neither signal disturb what is left of a command that is ending."""
    for number in (*SIGNALS, AGAIN):
        signal.signal(number, signal.SIG_IGN)


def is_of_command(handler: object) -> bool:
    """Whether a signal's handler is the one that `interruptible` sets."""
    return isinstance(handler, _Raise)


def _listen() -> None:
    earlier = sys.unraisablehook

    def swallowed(unraisable: sys.UnraisableHookArgs) -> None:
        if isinstance(unraisable.exc_value, KeyboardInterrupt):
            signal.setitimer(signal.ITIMER_REAL, AGAIN_S)
        else:
            earlier(unraisable)

    sys.unraisablehook = swallowed
    raise_ = _Raise()
    for number in (AGAIN, *SIGNALS):
        signal.signal(number, raise_)


def _leave(number: int, frame: FrameType | None) -> None:
    _say()
    os._exit(INTERRUPTED)


class _Raise:
    """The handler that raises KeyboardInterrupt where that is safe."""

    def __init__(self) -> None:
        self._owner = os.getpid()
        self._import_since_s: float | None = None  # when a signal first met an import

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._owner:  # a fork, such as a loader of data, which its parent ends by SIGTERM
            if number == signal.SIGTERM:
                os._exit(128 + number)
        elif _in_import(frame):
            now_s = time.monotonic()
            self._import_since_s = self._import_since_s or now_s
            if now_s - self._import_since_s > IMPORT_S:
                _leave(number, frame)
            signal.setitimer(signal.ITIMER_REAL, AGAIN_S)
        elif not _is_handled(sys.exception()):
            raise KeyboardInterrupt


def _in_import(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def _is_handled(error: BaseException | None) -> bool:
    """Whether the command is at dealing with an earlier signal already."""
    while error is not None:
        if isinstance(error, KeyboardInterrupt):
            return True
        error = error.__context__
    return False


def _say() -> None:
    with contextlib.suppress(OSError):  # nobody may be there to read it
        os.write(2, b"interrupted\n")
