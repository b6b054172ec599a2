"""Run Python commands in forks of one process that has imported everything, as most of a short command is imports.

`run` and `start` take what would follow `python` on a command line (`-m MODULE`, `-c CODE` or a script) and mean the
same as `subprocess` would, except that variables which libraries read when they load have no effect. Tests of how a
command loads, of such variables and of broken pipes use `subprocess`.

    start -> request and file descriptors -> server -> fork: monitor -> fork: the command
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import types
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import IO, Any, NoReturn

ROOT = Path(__file__).parents[1]
PRELOADED = (
    "torch", "psutil", "pandas", "scipy.stats", "scipy.optimize", "seaborn", "matplotlib.pyplot",
    "harness.sweep", "harness._conduct", "harness.runner.run", "harness.runner.external", "harness.runner.case",
    "harness.runner.fork_server", "harness.report.render", "harness.regress", "harness.profile", "attentions",
    "attentions.lsh_v2", "transformers.modeling_utils", "lsh_v2.train", "lsh_v2.arena.case", "tests.option_walk",
)  # fmt: skip
REQUEST_BYTES = 2**20


class Process:
    """The part of `subprocess.Popen` that tests use; output is kept in files until `communicate`."""

    def __init__(self, arguments: Sequence[str], status: int, stdout: IO[bytes], stderr: IO[bytes]) -> None:
        self.args = [sys.executable, *arguments]
        self.returncode: int | None = None
        self._status, self._outputs = os.fdopen(status, "r"), (stdout, stderr)
        first = self._status.readline()
        assert first, "the process that forks commands has ended"
        self.pid = int(first)

    def poll(self) -> int | None:
        """Return the exit code, or None while the command runs."""
        if self.returncode is None and select.select([self._status], [], [], 0)[0]:
            self.returncode = int(self._status.readline() or -signal.SIGKILL)
            self._status.close()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit code. Raises subprocess.TimeoutExpired if the command still runs after `timeout` seconds."""
        if self.returncode is None and not select.select([self._status], [], [], timeout)[0]:
            raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
        code = self.poll()
        assert code is not None
        return code

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Wait, and return everything that the command wrote to stdout and stderr. Closes the files; call it once."""
        self.wait(timeout)
        for file in self._outputs:
            file.seek(0)
        out, err = (file.read().decode() for file in self._outputs)
        self._close()
        return out, err

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        self.wait()
        self._close()

    def send_signal(self, number: int) -> None:
        """Send a signal, unless the command has ended."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill the command."""
        self.send_signal(signal.SIGKILL)

    def _close(self) -> None:
        for file in self._outputs:
            file.close()


def start(
    *arguments: str,
    cwd: str | Path | None = None,
    env: Mapping[str, str] | None = None,
    output: IO[bytes] | None = None,
    pass_fd: int | None = None,
) -> Process:
    """Start `python *arguments` in a session of its own. Stdout and stderr go to `output` if it is given."""
    stdout, stderr = (output or tempfile.TemporaryFile() for _ in range(2))  # noqa: SIM115
    reader, writer = os.pipe()
    request: dict[str, Any] = {
        "arguments": arguments,
        "cwd": str(cwd or Path.cwd()),
        "env": dict(os.environ if env is None else env),
        "passed": [] if pass_fd is None else [pass_fd],
    }
    socket.send_fds(
        _server(), [json.dumps(request).encode()], [writer, stdout.fileno(), stderr.fileno(), *request["passed"]]
    )
    os.close(writer)
    return Process(arguments, reader, stdout, stderr)


def run(
    *arguments: str,
    cwd: str | Path | None = None,
    env: Mapping[str, str] | None = None,
    timeout: float = 280.0,
    check: bool = False,
) -> subprocess.CompletedProcess[str]:
    """Run `python *arguments` to its end, as `subprocess.run(..., capture_output=True, text=True)` would."""
    process = start(*arguments, cwd=cwd, env=env)
    try:
        out, err = process.communicate(timeout)
    except BaseException:
        process.kill()
        raise
    done = subprocess.CompletedProcess(process.args, process.wait(), out, err)
    if check:
        assert done.returncode == 0, done.stderr
    return done


def start_fork_server(number: int, words: IO[bytes]) -> Any:
    """Stand-in for `harness.runner.executor.start_fork_server`."""
    from harness.runner import executor

    command = ("-m", "harness.runner.fork_server", str(number))
    return start(*command, cwd=ROOT, env=executor._environment(), output=words, pass_fd=number)


@cache
def _server() -> socket.socket:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        command = [sys.executable, "-m", "tests.preloaded", str(theirs.fileno())]
        subprocess.Popen(
            command, cwd=ROOT, env=_environment(), stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()],
            start_new_session=True,
        )  # fmt: skip
    return ours


def _environment() -> dict[str, str]:
    from harness.runner.executor import ENVIRONMENT

    path = os.pathsep.join(x for x in (str(ROOT), os.environ.get("PYTHONPATH")) if x)
    return {**ENVIRONMENT, **os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}


def main(number: int) -> None:
    """Import everything, then fork a monitor for each request until the other end of the socket closes."""
    control = socket.socket(fileno=number)
    for module in PRELOADED:
        importlib.import_module(module)
    import torch

    from harness.runner import executor

    torch.set_num_threads(1)
    executor.start_fork_server = _fork_server_here
    assert threading.active_count() == 1, "a fork would have none of the other threads"
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # monitors are not waited for
    while True:
        message, fds, _, _ = socket.recv_fds(control, REQUEST_BYTES, 64)
        if not message:
            return
        if os.fork() == 0:
            control.close()
            _monitor(json.loads(message), fds)
        for fd in fds:
            os.close(fd)


def _monitor(request: dict[str, Any], fds: list[int]) -> NoReturn:
    """Fork the command; write its process ID, and at its end its exit code."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    status, *others = fds
    pid = os.fork()
    if pid == 0:
        os.close(status)
        _end(lambda: _command(request, others))
    for fd in others:
        os.close(fd)
    os.write(status, f"{pid}\n".encode())
    _, ended = os.waitpid(pid, 0)
    with contextlib.suppress(BrokenPipeError):
        os.write(status, f"{os.waitstatus_to_exitcode(ended)}\n".encode())
    os._exit(0)


def _command(request: dict[str, Any], fds: list[int]) -> None:
    os.setsid()
    stdout, stderr, *passed = fds
    _redirect(stdout, stderr)
    for fd, number in zip(passed, request["passed"], strict=True):
        os.dup2(fd, number)
    _close_all_but(request["passed"])
    for number in (signal.SIGTERM, signal.SIGALRM, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    path = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    sys.path[:] = [request["cwd"], *path, *(entry for entry in sys.path if entry != str(ROOT))]
    arguments = list(request["arguments"])
    while arguments[0] == "-W":
        warnings.simplefilter(arguments[1])  # type: ignore[arg-type]
        del arguments[:2]
    if arguments[0] == "-m":
        sys.argv = arguments[1:]
        for name in (arguments[1], f"{arguments[1]}.__main__"):  # it is the main module now
            if not hasattr(sys.modules.get(name), "__path__"):
                sys.modules.pop(name, None)
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    elif arguments[0] == "-c":
        sys.argv = ["-c", *arguments[2:]]
        main_module = sys.modules["__main__"] = types.ModuleType("__main__")
        exec(compile(arguments[1], "<string>", "exec"), vars(main_module))
    else:
        sys.argv = arguments
        runpy.run_path(arguments[0], run_name="__main__")


def _end(command: Callable[[], None]) -> NoReturn:
    """Run a command and exit as the interpreter would."""
    code: Any = 0
    try:
        command()
    except SystemExit as end:
        code = end.code or 0
        if not isinstance(code, int):
            print(code, file=sys.stderr)
            code = 1
    except BaseException:
        traceback.print_exc()
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code & 0xFF)


class _Forked:
    """A child of this process, with the part of `subprocess.Popen` that an executor uses."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None

    def wait(self, timeout: float | None = None) -> int:
        until = time.monotonic() + (timeout or 1e9)
        while self.returncode is None:
            ended, status = os.waitpid(self.pid, os.WNOHANG)
            if ended:
                self.returncode = os.waitstatus_to_exitcode(status)
            elif time.monotonic() > until:
                raise subprocess.TimeoutExpired("fork server", timeout or 0.0)
            else:
                time.sleep(0.002)
        return self.returncode

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)


def _fork_server_here(number: int, words: IO[bytes]) -> Any:
    """Start a fork server as a fork of this command, which has no threads."""
    from harness.runner import executor, fork_server

    pid = os.fork()
    if pid:
        return _Forked(pid)
    try:
        os.setsid()
        signal.set_wakeup_fd(-1)
        for caught in (signal.SIGTERM, signal.SIGALRM, signal.SIGCHLD):
            signal.signal(caught, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        _redirect(words.fileno(), words.fileno())
        _close_all_but([number])
        os.environ.update(executor._environment())
        fork_server.main(number)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(0)


def _redirect(stdout: int, stderr: int) -> None:
    nothing = os.open(os.devnull, os.O_RDONLY)
    for fd, stream in ((nothing, 0), (stdout, 1), (stderr, 2)):
        os.dup2(fd, stream)


def _close_all_but(kept: Sequence[int]) -> None:
    before = 3
    for fd in (*sorted(kept), os.sysconf("SC_OPEN_MAX")):
        os.closerange(before, min(fd, 2**16))
        before = fd + 1


if __name__ == "__main__":
    main(int(sys.argv[1]))
