"""The main function of a child process: run one job, reply with one JSON object, and exit.

The reply is `{"status": "ok", "reason": "", "answer": ...}` or, if the job failed, "oom" or "crash" with the reason in
words. Everything the job prints goes to a log file.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import importlib
import json
import math
import os
import resource
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn

from pydantic import TypeAdapter

from harness.common.job import answer_type
from harness.measure import memory

OUT_OF_MEMORY_WORDS = ("can't allocate memory", "not enough memory", "out of memory", "bad_alloc", "bad allocation")
NO_ROOM_TO_LOAD = ("failed to map segment", "cannot allocate memory")  # from the dynamic loader


@dataclass(frozen=True)
class Assignment:
    """One job as plain data, and everything needed to run it.

    `kind` is the import path of the job's class and `fields` are its fields, `path` is the module search path, `folder`
    the working folder and `log` the file for its output; the rest are limits.
    """

    kind: str
    fields: dict[str, Any]
    path: list[str]
    folder: str
    log: str
    time_s: float
    memory_bytes: int | None
    file_bytes: int | None


@dataclass(frozen=True)
class Reply:
    """What a child says at its end: the job's answer as plain data, or None and why there is none."""

    status: Literal["ok", "oom", "crash"]
    reason: str
    answer: Any


def main(channel: int, assignment: Assignment) -> NoReturn:
    """Run a job in a fresh copy of the fork server, write the reply to `channel`, and exit with code 0."""
    gc.freeze()  # never collect what the fork server loaded; that would take 0.2 s each time
    os.setsid()  # its own process group, so that everything it starts can be killed with it
    _let_go_of_all_files_but(channel)
    _print_to(assignment.log)
    sys.path[:] = assignment.path
    os.chdir(assignment.folder)
    _restrict(assignment)
    output = json.dumps(vars(_attempt(assignment)), default=os.fspath).encode()
    while output:
        output = output[os.write(channel, output) :]
    os._exit(0)  # no library clean-up may hang or change the exit code


def load(path: str) -> Any:
    """Import the object `package.module:name`. Raises ValueError if there is none."""
    module, _, name = path.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"{path!r} cannot be imported: {error}") from error


def _attempt(assignment: Assignment) -> Reply:
    try:
        kind = load(assignment.kind)  # before the memory limit: a half-loaded library hangs or crashes
        job, answer = TypeAdapter(kind).validate_python(assignment.fields), TypeAdapter(answer_type(kind))
        memory.limit(assignment.memory_bytes)
        return Reply("ok", "", answer.dump_python(job.run()))
    except BaseException as error:  # the process boundary: every failure becomes an answer
        memory.limit(None)
        status = "oom" if is_out_of_memory(error) else "crash"
        reason = in_words(error)
        with contextlib.suppress(OSError):  # the output may have reached the file size limit
            traceback.print_exc()
        return Reply(status, reason, None)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error, or its cause, means that memory ran out on the CPU or a device."""
    import torch

    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return True
    phrases = OUT_OF_MEMORY_WORDS if isinstance(error, RuntimeError) else ()
    phrases = NO_ROOM_TO_LOAD if isinstance(error, ImportError | OSError) else phrases
    if any(word in str(error) for word in phrases):
        return True
    return error.__cause__ is not None and is_out_of_memory(error.__cause__)


def in_words(error: BaseException) -> str:
    """Format an error's type, message and place; the place is the innermost frame outside installed libraries."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if "site-packages" not in f.filename and f.filename != __file__]
    place = f" ({Path(own[-1].filename).name} line {own[-1].lineno})" if own else ""
    message = " ".join(str(error).split())[:300]
    return f"{type(error).__name__}: {message}{place}" if message else f"{type(error).__name__}{place}"


def _let_go_of_all_files_but(*kept: int) -> None:
    """Redirect every other inherited file descriptor to the null device; writing to some would end the fork server.

    The descriptors stay open, because objects copied from the fork server still hold their numbers.
    """
    nothing = os.open(os.devnull, os.O_RDWR)
    for file in [int(path.name) for path in Path("/dev/fd").iterdir()]:
        with contextlib.suppress(OSError):  # the descriptor of the listing itself is closed by now
            if file > 2 and file not in (nothing, *kept) and os.fstat(file):
                os.dup2(nothing, file)


def _print_to(log: str) -> None:
    file = os.open(log, os.O_WRONLY | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(file, stream)
    os.close(file)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]


def _restrict(assignment: Assignment) -> None:
    """Limit CPU time (in case the parent's clock fails) and file size."""
    _lower(resource.RLIMIT_CPU, math.ceil(assignment.time_s * (os.cpu_count() or 1)) + 60)
    _lower(resource.RLIMIT_CORE, 0)
    if assignment.file_bytes is not None:
        _lower(resource.RLIMIT_FSIZE, assignment.file_bytes)
    with contextlib.suppress(OSError):  # let the kernel kill this process rather than the sweep when memory runs out
        Path("/proc/self/oom_score_adj").write_text("1000")


def _lower(limit: int, value: int) -> None:
    _, hard = resource.getrlimit(limit)
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(limit, (value, hard))
