"""The fork server: a process with torch imported and no threads started, which forks a child for each job.

`harness.runner.executor` starts it as `python -m harness.runner.fork_server SOCKET` and sends one job at a time as a
line of JSON. The server replies with lines too: `ready` once; for each job the child's process ID; and, when the child
ends, how it ended and the number of bytes of its answer, followed by those bytes. The line `kill` ends the child at
once. When the other end of the socket closes for any reason, everything ends.

Everything that a child started is ended with it, whether or not it is in the child's process group: on Linux, orphans
are reparented to this process.
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

from harness.common.deadline import Deadline

PRELOADED = ("torch", "psutil", "harness.runner.worker", "harness.runner.case")
ANSWER_BYTES = 64 * 2**20  # a longer answer is cut off and not accepted

STRAYS_S = 5.0  # time limit for ending processes that a child left behind

# Options of prctl(2).
DIE_WITH_PARENT = 1
ADOPT_ORPHANS = 36


class ServerError(ValueError):
    """The fork server cannot be started; the message says why."""


def main(number: int) -> None:
    """Serve jobs from the socket with this file descriptor until it closes."""
    control_process(DIE_WITH_PARENT, signal.SIGKILL)  # until it can notice that the socket closes
    control = socket.socket(fileno=number)
    for module in PRELOADED:
        importlib.import_module(module)
    control_process(ADOPT_ORPHANS, 1)
    control_process(DIE_WITH_PARENT, 0)
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):  # the parent is gone
        _Server(control).serve()


class _Server:
    """Runs one child at a time."""

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
            if line != b"kill":  # a kill that arrived after the child had ended
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
            output = self._follow(pid, reader)
        finally:  # also if the parent is gone
            _kill(pid)
            _, status, used = os.wait4(pid, 0)
            _kill_strays()
        output += _rest(reader)
        os.close(reader)
        answer = bytes(output[:ANSWER_BYTES])
        code, cpu_s = os.waitstatus_to_exitcode(status), used.ru_utime + used.ru_stime
        self._tell(exitcode=code, cpu_s=cpu_s, size=len(answer))
        self._control.sendall(answer)

    def _follow(self, pid: int, reader: int) -> bytearray:
        """Return what a child writes until it ends or is killed."""
        output = bytearray()
        sources: list[Any] = [self._control, self._ended, reader]
        while True:
            ready, _, _ = select.select(sources, [], [])
            if self._control in ready:
                self._receive()
                if b"kill\n" in self._received:
                    self._received = b""
                    return output
            if reader in ready:
                chunk = os.read(reader, 2**16)
                output += chunk[: max(0, ANSWER_BYTES - len(output))]
                if not chunk:
                    sources.remove(reader)
            if self._ended in ready:
                os.read(self._ended, 2**16)
            if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                return output

    def _line(self) -> bytes:
        """Return the next line. Raises EOFError once the socket is closed."""
        while b"\n" not in self._received:
            self._receive()
        line, _, self._received = self._received.partition(b"\n")
        return line

    def _receive(self) -> None:
        chunk = self._control.recv(2**16)
        if not chunk:
            raise EOFError
        self._received += chunk

    def _tell(self, **fields: object) -> None:
        self._control.sendall(json.dumps(fields).encode() + b"\n")


def control_process(option: int, value: int) -> None:
    """Call prctl(2) if the system has it."""
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:
        prctl(option, ctypes.c_ulong(value), 0, 0, 0)


def _become_child(writer: int, job: dict[str, Any]) -> NoReturn:
    try:
        control_process(DIE_WITH_PARENT, signal.SIGKILL)
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        from harness.runner import worker

        worker.main(writer, worker.Assignment(**job))
    except BaseException:  # no exception may reach the server's own frames
        traceback.print_exc()
    finally:
        os._exit(1)


def _kill(pid: int) -> None:
    """Kill a child that has not been waited for, and its group. Its process ID cannot have been reused yet."""
    with contextlib.suppress(ProcessLookupError, PermissionError):  # it is not a group leader yet, or has ended (macOS)
        os.killpg(pid, signal.SIGKILL)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _kill_strays() -> None:
    """Kill everything that children left behind: killing one generation reparents the next to this process."""
    deadline = Deadline(STRAYS_S)
    while (pids := _children()) and not deadline.passed():
        for pid in pids:
            _kill(pid)
        for pid in pids:
            with contextlib.suppress(ChildProcessError):
                while os.waitpid(pid, os.WNOHANG) == (0, 0) and not deadline.passed():
                    time.sleep(0.001)


def _children() -> list[int]:
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return []  # the usual case, without scanning every process on the machine
    import psutil

    return [child.pid for child in psutil.Process().children()]


def _rest(reader: int) -> bytes:
    """Return what is left in a pipe that has no writer any more."""
    found = b""
    with contextlib.suppress(BlockingIOError):
        while chunk := os.read(reader, 2**16):
            found += chunk
    return found


if __name__ == "__main__":
    main(int(sys.argv[1]))
