"""The process that children are copies of: it has torch imported, started no thread and runs nothing of a case's.

`harness.executor` starts it as `python -m harness.fork_server SOCKET` and sends one job at a time, a line of JSON. It
answers with lines too: `ready`; for each job the child's process number; and how the child ended, with the number of
bytes that it said, which follow. The line `kill` ends the child at once. When the other end of the socket closes, by
whatever means, everything ends.

Whatever a child starts ends with it, in its process group or not: on Linux its orphans are handed to this process.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import os
import select
import signal
import socket
import sys
import time
import traceback
from typing import Any, NoReturn

PRELOADED = ("torch", "psutil", "harness.worker", "harness.measure")
ANSWER_BYTES = 64 * 2**20  # more than that is no answer

STRAYS_S = 5.0  # most time spent on ending what a child has left behind

# Options of prctl(2).
DIE_WITH_PARENT = 1
ADOPT_ORPHANS = 36


class ServerError(ValueError):
    """The fork server does not start; the message says why."""


def main(number: int) -> None:
    """Serve jobs from the socket of this number until it closes."""
    control_process(DIE_WITH_PARENT, signal.SIGKILL)  # until it can hear that the socket closes
    control = socket.socket(fileno=number)
    for module in PRELOADED:
        importlib.import_module(module)
    control_process(ADOPT_ORPHANS, 1)
    control_process(DIE_WITH_PARENT, 0)
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):  # nobody is there any more
        _Server(control).serve()


class _Server:
    """One child at a time."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._received = b""
        self._ended, wake = os.pipe()
        for end in (self._ended, wake):
            os.set_blocking(end, False)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)

    def serve(self) -> None:
        self._tell(ready=True)
        while True:
            line = self._line()
            if line != b"kill":  # one that came too late
                self._run(json.loads(line))

    def _run(self, job: dict[str, Any]) -> None:
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            _become_child(writer, job)
        os.close(writer)
        os.set_blocking(reader, False)
        try:
            self._tell(pid=pid)
            said = self._follow(pid, reader)
        finally:  # also when nobody is there any more
            _kill(pid)
            _, status, used = os.wait4(pid, 0)
            _kill_strays()
        said += _rest(reader)
        os.close(reader)
        answer = bytes(said[:ANSWER_BYTES])
        code, cpu_s = os.waitstatus_to_exitcode(status), used.ru_utime + used.ru_stime
        self._tell(exitcode=code, cpu_s=cpu_s, size=len(answer))
        self._control.sendall(answer)

    def _follow(self, pid: int, reader: int) -> bytearray:
        """What a child says until it ends, or is ended."""
        said = bytearray()
        sources: list[Any] = [self._control, self._ended, reader]
        while True:
            ready, _, _ = select.select(sources, [], [])
            if self._control in ready:
                self._receive()
                if b"kill\n" in self._received:
                    self._received = b""
                    return said
            if reader in ready:
                chunk = os.read(reader, 2**16)
                said += chunk[: max(0, ANSWER_BYTES - len(said))]
                if not chunk:
                    sources.remove(reader)
            if self._ended in ready:
                os.read(self._ended, 2**16)
            if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                return said

    def _line(self) -> bytes:
        """The next line. Raises EOFError once the socket is closed."""
        while b"\n" not in self._received:
            self._receive()
        line, _, self._received = self._received.partition(b"\n")
        return line

    def _receive(self) -> None:
        chunk = self._control.recv(2**16)
        if not chunk:
            raise EOFError
        self._received += chunk

    def _tell(self, **said: object) -> None:
        self._control.sendall(json.dumps(said).encode() + b"\n")


def control_process(option: int, value: int) -> None:
    """prctl(2), where there is one."""
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:
        prctl(option, ctypes.c_ulong(value), 0, 0, 0)


def _become_child(writer: int, job: dict[str, Any]) -> NoReturn:
    try:
        control_process(DIE_WITH_PARENT, signal.SIGKILL)
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        from harness import worker

        worker.main(writer, worker.Job(**job))
    except BaseException:  # nothing may climb into the server's own frames
        traceback.print_exc()
    finally:
        os._exit(1)


def _kill(pid: int) -> None:
    """End a child that is not waited for yet, and its group. Its number cannot have gone to another process."""
    with contextlib.suppress(ProcessLookupError, PermissionError):  # it leads no group yet, or (macOS) has ended
        os.killpg(pid, signal.SIGKILL)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _kill_strays() -> None:
    """End all that children have left behind: each generation that goes hands the next one to this process."""
    until = time.monotonic() + STRAYS_S
    while (pids := _children()) and time.monotonic() < until:
        for pid in pids:
            _kill(pid)
        for pid in pids:
            with contextlib.suppress(ChildProcessError):
                while os.waitpid(pid, os.WNOHANG) == (0, 0) and time.monotonic() < until:
                    time.sleep(0.001)


def _children() -> list[int]:
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return []  # the usual case, without a look at every process of the machine
    import psutil

    return [child.pid for child in psutil.Process().children()]


def _rest(reader: int) -> bytes:
    """What is left in a pipe that nobody writes to any more."""
    found = b""
    with contextlib.suppress(BlockingIOError):
        while chunk := os.read(reader, 2**16):
            found += chunk
    return found


if __name__ == "__main__":
    main(int(sys.argv[1]))
