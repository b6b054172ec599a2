"""Jobs that tests run in children of the executor."""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from harness.common.job import Job
from harness.common.rows import Case

left_behind: list[int] = []


@dataclass(frozen=True)
class Echo(Job[dict[str, Any]]):
    given: dict[str, Any]

    def run(self) -> dict[str, Any]:
        return self.given


@dataclass(frozen=True)
class GiveBack(Job[tuple[Path, Case, tuple[float, ...]]]):
    folder: Path
    case: Case
    numbers: tuple[float, ...]

    def run(self) -> tuple[Path, Case, tuple[float, ...]]:
        return self.folder, self.case, self.numbers


@dataclass(frozen=True)
class Found:
    """What a child started with."""

    count: int
    grad: bool
    threads: str


@dataclass(frozen=True)
class Remember(Job[Found]):
    def run(self) -> Found:
        left_behind.append(1)
        return Found(len(left_behind), torch.is_grad_enabled(), os.environ["OPENBLAS_NUM_THREADS"])


@dataclass(frozen=True)
class Fail(Job[None]):
    def run(self) -> None:
        raise KeyError("no such thing")


@dataclass(frozen=True)
class Leave(Job[None]):
    code: int

    def run(self) -> None:
        print("leaving now", flush=True)
        os._exit(self.code)


@dataclass(frozen=True)
class KillItself(Job[None]):
    number: int

    def run(self) -> None:
        print("these were its last words", flush=True)
        os.kill(os.getpid(), self.number)


@dataclass(frozen=True)
class WriteEverywhere(Job[Found]):
    text: str

    def run(self) -> Found:
        for file in range(3, 64):
            try:
                os.write(file, self.text.encode())
            except OSError:
                continue
        os._exit(0)


@dataclass(frozen=True)
class HangWithAChild(Job[None]):
    """Start two processes, one in a session of its own, and hold Python's lock for ever, deaf to polite signals."""

    pid_file: Path

    def run(self) -> None:
        for polite in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGIO):
            signal.signal(polite, signal.SIG_IGN)
        sleep = [sys.executable, "-c", "import time; time.sleep(600)"]
        children = [subprocess.Popen(sleep, start_new_session=alone) for alone in (False, True)]
        self.pid_file.write_text(" ".join(str(pid) for pid in (os.getpid(), *(child.pid for child in children))))
        ctypes.PyDLL(None).sleep(600)


@dataclass(frozen=True)
class LeaveAChild(Job[None]):
    pid_file: Path

    def run(self) -> None:
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        self.pid_file.write_text(str(child.pid))


@dataclass(frozen=True)
class LeaveADaemon(Job[None]):
    """Start a process that is in no group of this one's and whose parent has ended."""

    pid_file: Path

    def run(self) -> None:
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                self.pid_file.write_text(str(os.getpid()))
                time.sleep(600)
            os._exit(0)
        while not self.pid_file.exists() or not self.pid_file.read_text():
            time.sleep(0.01)


@dataclass(frozen=True)
class EndTheServer(Job[None]):
    def run(self) -> None:
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(600)


@dataclass(frozen=True)
class FillADisk(Job[None]):
    def run(self) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")


@dataclass(frozen=True)
class TakeTensors(Job[int]):
    def run(self) -> int:
        return len([torch.ones(2**24) for _ in range(1000)])


@dataclass(frozen=True)
class TakeBytes(Job[int]):
    def run(self) -> int:
        return len(bytearray(10**12))


@dataclass(frozen=True)
class PrintForEver(Job[None]):
    def run(self) -> None:
        while True:
            print("x" * 1000)


@dataclass(frozen=True)
class Sleep(Job[None]):
    seconds: float

    def run(self) -> None:
        time.sleep(self.seconds)


@dataclass(frozen=True)
class Peaks:
    """Bytes: of each channel in a call of its own, of both in one call, and of the output."""

    resident: float
    allocated: float
    both: tuple[float, float]
    out: int


@dataclass(frozen=True)
class PeaksOfSoftmax(Job[Peaks]):
    """Both memory channels of attention with two score matrices of n * n floats."""

    n: int

    def run(self) -> Peaks:
        from harness.measure import memory
        from tests.harness.backends import softmax

        torch.set_num_threads(1)
        torch.set_grad_enabled(False)
        memory.return_freed_memory()
        torch.ones(2**27)  # half a gigabyte that is gone again must not count
        q, k, v = (torch.randn(1, 1, self.n, 16) for _ in range(3))
        softmax(q[:, :, :64], k[:, :, :64], v[:, :, :64], 1.0, causal=False)
        out, resident = memory.resident_peak(lambda: softmax(q, k, v, 1.0, causal=False))
        del out
        out, allocated = memory.allocator_peak(lambda: softmax(q, k, v, 1.0, causal=False))
        again, both = memory.resident_peak(lambda: memory.allocator_peak(lambda: softmax(q, k, v, 1.0, causal=False)))
        assert resident is not None
        assert both is not None
        return Peaks(resident, allocated, (both, again[1]), out.numel() * 4)
