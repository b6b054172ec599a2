"""Functions that tests run in children of the executor."""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

left_behind: list[int] = []


def echo(**given: Any) -> dict[str, Any]:
    return given


def remember() -> dict[str, Any]:
    left_behind.append(1)
    return {"count": len(left_behind), "grad": torch.is_grad_enabled(), "threads": os.environ["OPENBLAS_NUM_THREADS"]}


def fail() -> dict[str, Any]:
    raise KeyError("no such thing")


def leave(code: int) -> dict[str, Any]:
    print("leaving now", flush=True)
    os._exit(code)


def kill_itself(number: int) -> dict[str, Any]:
    print("these were its last words", flush=True)
    os.kill(os.getpid(), number)
    return {}


def write_everywhere(text: str) -> dict[str, Any]:
    for file in range(3, 64):
        try:
            os.write(file, text.encode())
        except OSError:
            continue
    os._exit(0)


def hang_with_a_child(pid_file: str) -> dict[str, Any]:
    """Start two processes, one in a session of its own, and hold Python's lock for ever, deaf to polite signals."""
    for polite in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGIO):
        signal.signal(polite, signal.SIG_IGN)
    sleep = [sys.executable, "-c", "import time; time.sleep(600)"]
    children = [subprocess.Popen(sleep, start_new_session=alone) for alone in (False, True)]
    Path(pid_file).write_text(" ".join(str(pid) for pid in (os.getpid(), *(child.pid for child in children))))
    ctypes.PyDLL(None).sleep(600)
    return {}


def leave_a_child(pid_file: str) -> dict[str, Any]:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    Path(pid_file).write_text(str(child.pid))
    return {}


def leave_a_daemon(pid_file: str) -> dict[str, Any]:
    """Start a process that is in no group of this one's and whose parent has ended."""
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            Path(pid_file).write_text(str(os.getpid()))
            time.sleep(600)
        os._exit(0)
    while not Path(pid_file).exists() or not Path(pid_file).read_text():
        time.sleep(0.01)
    return {}


def end_the_server() -> dict[str, Any]:
    os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(600)
    return {}


def fill_a_disk() -> dict[str, Any]:
    raise OSError(errno.ENOSPC, "No space left on device")


def take_tensors() -> dict[str, Any]:
    return {"taken": len([torch.ones(2**24) for _ in range(1000)])}


def take_bytes() -> dict[str, Any]:
    return {"taken": len(bytearray(10**12))}


def print_for_ever() -> dict[str, Any]:
    while True:
        print("x" * 1000)


def sleep(seconds: float) -> dict[str, Any]:
    time.sleep(seconds)
    return {}


def peaks_of_softmax(n: int) -> dict[str, Any]:
    """Both memory channels of attention with two score matrices of n * n floats, each in a call of its own."""
    from harness.measure import memory
    from tests.harness.backends import softmax

    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    memory.return_freed_memory()
    torch.ones(2**27)  # half a gigabyte that is gone again must not count
    q, k, v = (torch.randn(1, 1, n, 16) for _ in range(3))
    softmax(q[:, :, :64], k[:, :, :64], v[:, :, :64], 1.0, causal=False)
    out, resident = memory.resident_peak(lambda: softmax(q, k, v, 1.0, causal=False))
    del out
    out, allocated = memory.allocator_peak(lambda: softmax(q, k, v, 1.0, causal=False))
    again, both = memory.resident_peak(lambda: memory.allocator_peak(lambda: softmax(q, k, v, 1.0, causal=False)))
    return {"resident": resident, "allocated": allocated, "both": [both, again[1]], "out": out.numel() * 4}
