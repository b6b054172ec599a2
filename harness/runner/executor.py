"""Run one job in a fresh process that cannot harm the sweep.

A fork server has torch imported and no threads started. Each child is a copy of it, so a case starts within a few
hundredths of a second and sees nothing left over from an earlier case. A child has a time limit and a memory limit,
replies with one JSON object, and is killed together with everything it started. The parent sleeps until there is
something to read.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from contextlib import suppress
from dataclasses import asdict, dataclass
from multiprocessing.connection import wait
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, Generic, Literal

from pydantic import TypeAdapter

from harness.common.deadline import Deadline
from harness.common.job import Answer, Job, answer_type, path_of
from harness.measure.elapsed import Elapsed
from harness.runner.fork_server import ServerError
from harness.runner.worker import Assignment, Reply

if TYPE_CHECKING:
    from harness.runner.signals import Interruption

LOG_BYTES = 256 * 2**20  # keep a child that prints endlessly from filling the disk
TAIL_CHARACTERS = 300
START_S = 600.0  # limit for the fork server to import torch
REPLY_S = 30.0  # limit for the fork server to start or end a child

# Libraries read these when they load, so they are set before the fork server starts. Each case sets torch's threads.
ENVIRONMENT = {
    "OPENBLAS_NUM_THREADS": "1",
    "NUMEXPR_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "KINETO_LOG_LEVEL": "99",  # otherwise torch's profiler prints two lines per use
}


@dataclass(frozen=True)
class Limits:
    """Limits of a child: wall time in seconds, address space beyond its start in bytes, and file size in bytes."""

    time_s: float
    memory_bytes: int | None = None
    file_bytes: int | None = LOG_BYTES


@dataclass(frozen=True)
class Outcome(Generic[Answer]):
    """How a child ended. With status "ok" there is the job's answer; any other status has its reason in words.

    `wall_s` is the time from request to end, `cpu_s` the CPU time of the child and of all processes it waited for.
    """

    status: Literal["ok", "oom", "timeout", "crash"]
    reason: str
    answer: Answer | None
    wall_s: float
    cpu_s: float = 0.0


class Executor:
    """Runs jobs in fresh children, one at a time. `scratch` is an existing folder for their output.

    With an `interruption`, a signal ends the running child, and `run` raises KeyboardInterrupt.
    """

    def __init__(self, scratch: Path, interruption: Interruption | None = None) -> None:
        self.scratch = scratch
        self._interruption = interruption
        self._server: _Server | None = None

    def __enter__(self) -> Executor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.close()

    def start(self) -> None:
        """Start the fork server in the background, unless it is already running."""
        self._server = self._server or _Server(self._interruption)

    def close(self) -> None:
        """End the fork server; the next `run` starts a new one."""
        if self._server is not None:
            self._server.end()
            self._server = None

    def run(self, job: Job[Answer], limits: Limits) -> Outcome[Answer]:
        """Run a job in a child.

        Nothing that the child does raises here; an interrupt ends the child and is re-raised. Raises OSError if the
        scratch folder cannot be written, and ServerError if no child can be started.
        """
        with tempfile.NamedTemporaryFile(dir=self.scratch, prefix="child-", suffix=".log") as log:
            fields = TypeAdapter(type(job)).dump_python(job, warnings=False)  # the child checks their types
            assignment = Assignment(path_of(type(job)), fields, _path(), str(Path.cwd()), log.name, **vars(limits))
            try:
                server = self._server = self._server or _Server(self._interruption)
                server.await_ready()
                elapsed, kills = Elapsed(), _kernel_kills()
                ended = server.follow(assignment)
            except BaseException:
                self.close()  # this ends the child too
                raise
            if not server.alive:
                self.close()
            wall_s = elapsed.seconds()
            by_kernel = ended.exitcode == -signal.SIGKILL and _kernel_kills() > kills
            outcome = _judge(job, ended, limits.time_s, wall_s, Path(log.name), by_kernel=by_kernel)
        if outcome.status == "crash":
            self._require_room()
        return outcome

    def _require_room(self) -> None:
        """Raise OSError if the disk is full: a child that cannot print may crash, which says nothing about its case."""
        try:
            with tempfile.NamedTemporaryFile(dir=self.scratch) as trial:
                trial.write(bytes(2**16))
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise


@dataclass(frozen=True)
class _Ended:
    """How a process ended: its exit code, its output bytes and its CPU time.

    `late` means that it ran out of time, `lost` that the fork server ended before it.
    """

    exitcode: int
    output: bytes
    cpu_s: float
    late: bool = False
    lost: bool = False


class _Server:
    """The parent's end of a fork server. `alive` is False once the server has ended or stopped replying."""

    def __init__(self, interruption: Interruption | None) -> None:
        self._sources: list[Any] = [] if interruption is None else [interruption]
        self._interruption = interruption
        self._words = tempfile.TemporaryFile()  # noqa: SIM115, closed by `end`
        self._socket, theirs = socket.socketpair()
        self._sources.append(self._socket)
        with theirs:
            self._process = start_fork_server(theirs.fileno(), self._words)
        self._received = bytearray()
        self._ready, self.alive = False, True

    def await_ready(self) -> None:
        """Wait until children can be started. Raises ServerError if that fails."""
        self._ready = self._ready or self._message(START_S) is not None
        if not self._ready:
            self._words.seek(0)
            output = " ".join(self._words.read().decode(errors="replace").split())[-TAIL_CHARACTERS:]
            raise ServerError(f"the process that starts cases cannot be started: {output or 'it does not reply'}")

    def follow(self, assignment: Assignment) -> _Ended:
        """Send a job and wait until it ends or its time limit passes."""
        self._send(json.dumps(asdict(assignment), default=os.fspath).encode())
        started = self._message(REPLY_S)
        ended = self._message(assignment.time_s) if started else None
        late = ended is None and self.alive
        if late:
            self._send(b"kill")
            ended = self._message(REPLY_S)
        if ended is None:
            self.alive = False
            if started is not None:
                with suppress(ProcessLookupError, PermissionError):
                    os.killpg(started["pid"], signal.SIGKILL)
            return _Ended(0, b"", 0.0, late=late, lost=not late)
        return _Ended(ended["exitcode"], self._take(ended["size"]), ended["cpu_s"], late=late)

    def end(self) -> None:
        """End the server and its child; return once both have ended."""
        self._socket.close()
        if not (self._ready and self.alive):
            self._process.kill()  # it does not notice that the socket closed
        try:
            self._process.wait(REPLY_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._words.close()

    def _send(self, line: bytes) -> None:
        try:
            self._socket.sendall(line + b"\n")
        except (BrokenPipeError, ConnectionResetError):
            self.alive = False

    def _message(self, time_s: float) -> dict[str, Any] | None:
        """Return the server's next line; None if it does not arrive in time or the server has ended."""
        deadline = Deadline(time_s)
        while b"\n" not in self._received:
            left_s = max(0.0, deadline.left_s())  # a wait may end early without data from the server
            if not self.alive or (not self._receive(left_s) and left_s == 0.0):
                return None
        line, _, rest = self._received.partition(b"\n")
        self._received = rest
        return json.loads(line)

    def _take(self, size: int) -> bytes:
        """Return the `size` bytes that follow a message, or fewer if the server has ended."""
        while len(self._received) < size and self.alive:
            self._receive(REPLY_S)
        taken = bytes(self._received[:size])
        del self._received[:size]
        return taken

    def _receive(self, time_s: float) -> bool:
        """Wait for data from the server and return whether any came. Raises KeyboardInterrupt on a signal."""
        ready = wait(self._sources, time_s)
        if self._interruption is not None:
            self._interruption.check()
        if self._socket not in ready:
            return False
        try:
            chunk = self._socket.recv(2**16)
        except ConnectionResetError:
            chunk = b""
        self._received += chunk
        self.alive = bool(chunk)
        return self.alive


def start_fork_server(number: int, words: IO[bytes]) -> subprocess.Popen[bytes]:
    """Start a fork server that listens on the inherited socket `number` and prints into the file `words`."""
    return subprocess.Popen(
        [sys.executable, "-m", "harness.runner.fork_server", str(number)],
        stdin=subprocess.DEVNULL,
        stdout=words,
        stderr=words,
        pass_fds=[number],
        start_new_session=True,  # only the parent receives signals from the terminal
        env=_environment(),
    )


def _judge(
    job: Job[Answer], ended: _Ended, time_s: float, wall_s: float, log: Path, *, by_kernel: bool
) -> Outcome[Answer]:
    def outcome(status: Literal["oom", "timeout", "crash"], reason: str) -> Outcome[Answer]:
        return Outcome(status, reason, None, wall_s, ended.cpu_s)

    if ended.late:
        return outcome("timeout", f"no answer within {time_s:g} s{_last_words(log)}")
    if ended.lost:
        return outcome("crash", f"the process that started it was terminated{_last_words(log)}")
    if by_kernel:
        return outcome("oom", "killed by the kernel, which had run out of memory")
    if ended.exitcode < 0:
        return outcome("crash", f"killed by {_signal_name(-ended.exitcode)}{_last_words(log)}")
    if ended.exitcode > 0:
        return outcome("crash", f"exited with code {ended.exitcode}{_last_words(log)}")
    if not ended.output:
        return outcome("crash", f"exited with code 0 without an answer{_last_words(log)}")
    try:
        reply = TypeAdapter(Reply).validate_python(json.loads(ended.output))
        if reply.status != "ok":
            return outcome(reply.status, reply.reason)
        answer = TypeAdapter(answer_type(type(job))).validate_python(reply.answer)
        return Outcome("ok", reply.reason, answer, wall_s, ended.cpu_s)
    except ValueError:
        start = ended.output[:60]
        return outcome("crash", f"exited with code 0 and an invalid answer: {start!r}")


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _last_words(log: Path) -> str:
    """Return the end of the child's output on one line, to append to a reason; "" if it printed nothing."""
    with log.open("rb") as stream:
        stream.seek(max(0, os.fstat(stream.fileno()).st_size - 4 * TAIL_CHARACTERS))
        text = stream.read().decode(errors="replace")
    output = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return f"; its last output: {output[-TAIL_CHARACTERS:]}" if output else ""


def _kernel_kills() -> int:
    """Return how many processes the kernel has killed for lack of memory since boot; 0 if unknown."""
    try:
        lines = Path("/proc/vmstat").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)


def _path() -> list[str]:
    """Return this process's module search path with absolute folders, for use by a child."""
    return [str(Path(entry or ".").resolve()) for entry in sys.path]


def _environment() -> dict[str, str]:
    """Return the fork server's environment. Variables set by the user keep their values."""
    root = str(Path(__file__).parents[2])
    path = os.pathsep.join(p for p in (root, os.environ.get("PYTHONPATH")) if p)
    return {**ENVIRONMENT, **os.environ, "PYTHONPATH": path}
