"""Runs one piece of work in a fresh process that cannot harm the sweep.

A fork server has torch imported and no thread started; each child is a copy of it, so that a case begins
within some hundredths of a second and finds nothing that an earlier case left behind. A child has a time
limit and a memory limit, answers with one JSON object, and is killed with everything it started. The parent
sleeps until there is something to read; it never unpickles what a child sends.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import connection, forkserver
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any, Literal

from harness import worker

ANSWER_BYTES = 64 * 2**20  # more than that is no answer
LOG_BYTES = 256 * 2**20  # a child that prints for ever shall not fill the disk
TAIL_CHARACTERS = 300

# Read when libraries load, hence set before the fork server starts; torch's own threads are set by each case.
ENVIRONMENT = {
    "OPENBLAS_NUM_THREADS": "1",
    "NUMEXPR_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "KINETO_LOG_LEVEL": "99",  # torch's profiler prints two lines a use otherwise
}


@dataclass(frozen=True)
class Limits:
    """What a child may use: seconds of wall time, bytes of address space beyond its start, bytes of a file."""

    time_s: float
    memory_bytes: int | None = None
    file_bytes: int | None = LOG_BYTES


@dataclass(frozen=True)
class Outcome:
    """How a child ended. `answer` stands only with status "ok"; every other status has its reason in words."""

    status: Literal["ok", "oom", "timeout", "crash"]
    reason: str
    answer: dict[str, Any]
    wall_s: float


class Executor:
    """Runs functions in fresh children, one at a time. `scratch` is an existing folder for their output."""

    def __init__(self, scratch: Path) -> None:
        self._scratch = scratch
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["torch", "harness.worker", "harness.measure"])
        with _environment(ENVIRONMENT), _interrupts_blocked():
            forkserver.ensure_running()

    def run(self, function: str, arguments: dict[str, Any], limits: Limits) -> Outcome:
        """Call `package.module:function` with JSON-able keyword arguments; its answer is a JSON object.

        Nothing that the child does raises here; an interrupt kills the child and is raised on. Raises OSError
        where the scratch folder cannot be written.
        """
        with tempfile.NamedTemporaryFile(dir=self._scratch, prefix="child-", suffix=".log") as log:
            started = time.monotonic()
            ended = self._supervise(worker.Job(function, arguments, log.name, **vars(limits)), limits.time_s)
            return _judge(ended, limits.time_s, time.monotonic() - started, Path(log.name))

    def _supervise(self, job: worker.Job, time_s: float) -> _Ended:
        reader, writer = self._context.Pipe(duplex=False)
        process = self._context.Process(target=worker.main, args=(writer, job))
        kills = _kernel_kills()
        with reader:
            process.start()
            try:
                writer.close()
                said = _listen(reader, process.sentinel, time.monotonic() + time_s)
            finally:
                _kill(process)
        exitcode = process.exitcode
        process.close()
        if said is None or exitcode is None:
            return _Ended(None, b"", by_kernel=False)
        return _Ended(exitcode, said, by_kernel=exitcode == -signal.SIGKILL and _kernel_kills() > kills)


@dataclass(frozen=True)
class _Ended:
    """How a process ended: exit code, None if it ran out of time; all it wrote; whether the kernel killed it."""

    exitcode: int | None
    said: bytes
    by_kernel: bool


def _listen(reader: connection.Connection, sentinel: int, deadline: float) -> bytes | None:
    """What comes through the pipe until the process ends; None if it does not end in time.

    The bytes are read as they are, without length headers, since a garbled header could block for ever.
    """
    said = bytearray()
    sources: list[Any] = [reader, sentinel]
    while True:
        ready = connection.wait(sources, max(0.0, deadline - time.monotonic()))
        if reader in ready:
            chunk = os.read(reader.fileno(), 2**16)
            said += chunk[: ANSWER_BYTES - len(said)]
            if not chunk:
                sources.remove(reader)
        elif ready:
            return bytes(said)
        else:
            return None


def _kill(process: ForkServerProcess) -> None:
    """End the child and whatever it started; harmless if all have ended."""
    pid = process.pid
    assert pid is not None, "the process was started"
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:  # nothing is left of its group, or it does not lead one yet
        if process.exitcode is None:
            process.kill()
    process.join()


def _judge(ended: _Ended, time_s: float, wall_s: float, log: Path) -> Outcome:
    if ended.exitcode is None:
        return Outcome("timeout", f"no answer within {time_s:g} s{_last_words(log)}", {}, wall_s)
    if ended.by_kernel:
        return Outcome("oom", "killed by the kernel, which had run out of memory", {}, wall_s)
    if ended.exitcode < 0:
        return Outcome("crash", f"killed by {_signal_name(-ended.exitcode)}{_last_words(log)}", {}, wall_s)
    if ended.exitcode > 0:
        return Outcome("crash", f"exited with code {ended.exitcode}{_last_words(log)}", {}, wall_s)
    if not ended.said:
        return Outcome("crash", f"exited with code 0 without an answer{_last_words(log)}", {}, wall_s)
    try:
        said = json.loads(ended.said)
        return Outcome(said["status"], said["reason"], said["answer"], wall_s)
    except (ValueError, KeyError, TypeError):
        start = ended.said[:60]
        return Outcome("crash", f"exited with code 0 and an answer that is not understood: {start!r}", {}, wall_s)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _last_words(log: Path) -> str:
    """The end of what the child printed, on one line, to be put after a reason; empty if it printed nothing."""
    with log.open("rb") as stream:
        stream.seek(max(0, os.fstat(stream.fileno()).st_size - 4 * TAIL_CHARACTERS))
        text = stream.read().decode(errors="replace")
    words = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return f"; its last output: {words[-TAIL_CHARACTERS:]}" if words else ""


def _kernel_kills() -> int:
    """How many processes the kernel has killed for lack of memory since it started; 0 where it does not say."""
    try:
        lines = Path("/proc/vmstat").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)


@contextmanager
def _environment(extra: dict[str, str]) -> Iterator[None]:
    """Variables that a program started within this block inherits. What the user has set stays."""
    root = str(Path(__file__).parents[1])
    path = os.pathsep.join(p for p in (root, os.environ.get("PYTHONPATH")) if p)
    added = {name: value for name, value in extra.items() if name not in os.environ} | {"PYTHONPATH": path}
    before = {name: os.environ.get(name) for name in added}
    os.environ.update(added)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """A program started within this block never sees Ctrl-C; the sweep does, and ends it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
