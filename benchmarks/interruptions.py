"""Kill and interrupt small sweeps at random moments, and count lost rows, leftover processes and wrong exits.

    python -m benchmarks.interruptions --kills 100 --signals 40

A sweep is killed, resumed, killed again and so on, and finally left to end. No row in the file may be lost or changed,
none may be measured twice, and no process may remain ten seconds after a kill. Then sweeps receive Ctrl-C or SIGTERM,
half of them twice, either the process alone or its whole process group. Standard error may contain only messages, the
exit status must be 130 (0 if everything was already done), and the report must exist if there is a row.

Moments are drawn from the duration of an undisturbed sweep, so they also hit its start and its report. For signals they
are counted from when the command starts listening; before that, for some hundredths of a second, Python itself is
starting. Prints one line per count. Exit status 0 if all checks hold, otherwise 1, with details on standard error.
"""

from __future__ import annotations

from attentions.common.stopping import exit_on_signal, run_interruptible

if __name__ == "__main__":
    exit_on_signal()  # before the slow imports

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import yaml

from harness.common.deadline import Deadline
from harness.common.rows import Row
from harness.measure.elapsed import Elapsed
from harness.results.rows_file import read_rows

ROOT = Path(__file__).parents[1]
MARK = "ATTENTION_BENCH_INTERRUPTIONS"  # environment variable that identifies a sweep's processes
LEFT_S = 10.0  # time within which all processes must have ended
CHAIN = 5  # kills before a sweep is left to end
CONFIG = {
    "subject": "attention",
    "backends": ["vanilla", "flash"],
    "lengths": [16, 32],
    "batch": 1,
    "heads": 2,
    "head_dim": 8,
    "causal": True,
    "level": "kernel",
    "mode": "forward",
    "inputs": "gaussian",
    "dtype": "float32",
    "device": "cpu",
    "threads": 1,
    "rounds": 2,
    "budget": {"case_s": 60, "memory_gb": 2, "total_s": 3000},
    "seed": 0,
    "executor": "local",
}
CELLS = len(CONFIG["backends"]) * len(CONFIG["lengths"]) * CONFIG["rounds"]
STARTED: list[subprocess.Popen[str]] = []


@dataclass
class Sweep:
    """A running sweep, in its own process group."""

    arguments: Sequence[str]
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)

    def __post_init__(self) -> None:
        self.elapsed = Elapsed()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "harness.sweep", *self.arguments],
            cwd=ROOT,
            env={**os.environ, MARK: self.mark},
            start_new_session=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        STARTED.append(self.process)

    def ends_within(self, seconds: float) -> bool:
        """Return whether it ends within this time."""
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def await_listening(self) -> None:
        """Wait until it blocks or handles SIGTERM, which plain Python does not."""
        status, term = Path(f"/proc/{self.process.pid}/status"), 1 << (signal.SIGTERM - 1)
        while self.process.poll() is None:
            masks = [line.split()[1] for line in status.read_text().splitlines() if line[:6] in ("SigBlk", "SigCgt")]
            if any(int(mask, 16) & term for mask in masks):
                return
            time.sleep(0.001)

    def end(self) -> tuple[str, str]:
        """Return its output and standard error once it has ended."""
        return self.process.communicate()

    def left(self) -> list[str]:
        """Return its processes that still run after ten seconds; returns early once there are none."""
        deadline = Deadline(LEFT_S)
        while (found := processes(self.mark)) and not deadline.passed():
            time.sleep(0.1)
        return found


def processes(mark: str) -> list[str]:
    """Return every process that was started with this mark, directly or indirectly."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(f"{process.pid}: {' '.join(process.cmdline())[:100]}")
        except psutil.Error:
            continue
    return found


class Trials:
    """Counts by name, and descriptions of what went wrong."""

    def __init__(self, where: Path, seed: int) -> None:
        self.counts: Counter[str] = Counter()
        self.seen: list[str] = []
        self._where, self._random, self._number = where, random.Random(seed), 0
        self._conf = where / "conf.yml"
        self._conf.write_text(yaml.safe_dump(CONFIG))
        self._length_s = self._undisturbed_s()

    def kills(self, wanted: int) -> None:
        """Kill `wanted` sweeps, and resume each."""
        while self.counts["killed"] < wanted:
            folder, rows = self._folder(), list[Row]()
            arguments = [str(self._conf), "--out", str(folder)]
            for _ in range(min(CHAIN, wanted - self.counts["killed"])):
                rows = self._killed(arguments, folder, rows)
                if (folder / "rows.jsonl").exists():
                    arguments = [str(self._conf), "--resume", str(folder)]
            sweep = Sweep(arguments)
            _, said = sweep.end()
            self._expect("resumed runs that did not end well", sweep.process.returncode == 0, said)
            self._kept(folder, rows)
            cells = Counter((row.label, row.n, row.round) for row in read_rows(folder))
            self._expect("runs with a row missing", len(cells) == CELLS, str(cells))
            self.counts["rows doubled"] += sum(count - 1 for count in cells.values())

    def signals(self, number: signal.Signals, wanted: int) -> None:
        """Send a signal to `wanted` sweeps."""
        done = 0
        while done < wanted:
            folder = self._folder()
            sweep = Sweep([str(self._conf), "--out", str(folder)])
            sweep.await_listening()
            if sweep.ends_within(self._moment_s()):
                sweep.end()
                continue
            for _ in range(self._random.choice((1, 2))):
                self._random.choice((os.kill, os.killpg))(sweep.process.pid, number)
            out, said = sweep.end()
            done += 1
            self.counts[f"{number.name} sent"] += 1
            name, status = number.name, sweep.process.returncode
            self._expect(f"{name}: tracebacks", "Traceback" not in said and "Error" not in said, said)
            ended_first = status == 0 and "interrupted" not in said
            self._expect(f"{name}: wrong exit status", status == 130 or ended_first, f"{status}: {said}")
            rows = read_rows(folder)
            self.counts[f"{name}: with rows"] += bool(rows)
            reported = (folder / "report.html").exists() and f"report: {folder / 'report.html'}" in out
            self._expect(f"{name}: no report", reported or not rows, f"{status}: {out} {said}")
            self._expect(f"{name}: processes left", not (left := sweep.left()), str(left))

    def _killed(self, arguments: Sequence[str], folder: Path, before: Sequence[Row]) -> list[Row]:
        """Kill one sweep; return the rows that it left."""
        sweep = Sweep(arguments)
        if not sweep.ends_within(self._moment_s()):
            sweep.process.kill()
            sweep.end()
            self.counts["killed"] += 1
            self._expect("processes left", not (left := sweep.left()), str(left))
        else:
            sweep.end()
        return self._kept(folder, before)

    def _kept(self, folder: Path, before: Sequence[Row]) -> list[Row]:
        rows = read_rows(folder)
        lost = sum(row not in rows for row in before)
        self._expect("rows lost", not lost, f"{folder}: {lost}")
        return rows

    def _undisturbed_s(self) -> float:
        sweep = Sweep([str(self._conf), "--out", str(self._folder())])
        sweep.end()
        return sweep.elapsed.seconds()

    def _moment_s(self) -> float:
        return self._random.uniform(0.0, self._length_s)

    def _folder(self) -> Path:
        self._number += 1
        return self._where / f"run{self._number}"

    def _expect(self, what: str, holds: bool, seen: str) -> None:
        self.counts[what] += not holds
        if not holds:
            self.seen.append(f"{what}: {seen}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the requested trials and print the counts."""
    parser = argparse.ArgumentParser("python -m benchmarks.interruptions", description="Kill and interrupt sweeps")
    parser.add_argument("--kills", type=int, default=100, help="number of sweeps to kill")
    parser.add_argument("--signals", type=int, default=40, help="number of sweeps to interrupt with each signal")
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments")
    chosen = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as where:
        try:
            trials = Trials(Path(where), chosen.seed)
            trials.kills(chosen.kills)
            for number in (signal.SIGINT, signal.SIGTERM):
                trials.signals(number, chosen.signals)
        finally:  # a sweep in its own process group does not receive the signal that interrupts this command
            for process in STARTED:
                process.kill()
                process.wait()
    for name, count in trials.counts.items():
        print(f"{name}: {count}")
    for seen in trials.seen:
        print(seen, file=sys.stderr)
    return 1 if trials.seen or trials.counts["rows doubled"] else 0


if __name__ == "__main__":
    sys.exit(run_interruptible(main))
