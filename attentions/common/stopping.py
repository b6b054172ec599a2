"""How every command of the project ends on Ctrl-C and SIGTERM: one line, exit status 130, no traceback.

    from attentions.common.stopping import exit_on_signal, run_interruptible

    if __name__ == "__main__":
        exit_on_signal()

    import torch                      # slow imports go here

    if __name__ == "__main__":
        sys.exit(run_interruptible(main))

Only the `__main__` blocks of commands call these: importing a package or calling `main` never changes a signal handler.
By default Python would print a traceback for Ctrl-C, even in the middle of an import, and SIGTERM would end the process
without a message and without running finalisers.
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
AGAIN = signal.SIGALRM  # redelivers one of `SIGNALS` that arrived at an unsafe moment
INTERRUPTED = 130
AGAIN_S = 0.02
IMPORT_S = 1.0  # an import that takes longer than this after a signal may hang


def exit_on_signal() -> None:
    """Exit at once on either signal until `run_interruptible` starts, while modules are still being imported.

    Does nothing outside the main thread, because Python does not allow handlers there.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    for number in SIGNALS:
        signal.signal(number, _leave)


def run_interruptible(main: Callable[[], int | None]) -> int | None:
    """Run a command and return its exit status. The first signal raises KeyboardInterrupt within `main`.

    `main` may catch the exception and report the results so far. The exception is raised after an import rather than
    within one, which would leave a half-initialised module, but an import that takes longer than `IMPORT_S` ends the
    process. If a finaliser swallows it, it is raised again. Once `main` has returned, both signals are ignored, because
    the exit status is already decided. After an interrupt, a second signal ends a process that is still waiting for a
    thread. Outside the main thread this only calls `main`.
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
    """Ignore both signals while a command ends."""
    for number in (*SIGNALS, AGAIN):
        signal.signal(number, signal.SIG_IGN)


def is_of_command(handler: object) -> bool:
    """Whether this signal handler is the one that `run_interruptible` sets."""
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
    """Signal handler that raises KeyboardInterrupt when it is safe to do so."""

    def __init__(self) -> None:
        self._owner = os.getpid()
        self._import_since_s: float | None = None  # time of the first signal during an import

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._owner:  # forked worker, e.g. of a data loader; its parent ends it by SIGTERM
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
    """Whether an earlier signal is already being handled."""
    while error is not None:
        if isinstance(error, KeyboardInterrupt):
            return True
        error = error.__context__
    return False


def _say() -> None:
    with contextlib.suppress(OSError):  # stderr may be closed
        os.write(2, b"interrupted\n")
