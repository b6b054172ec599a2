"""Record how this machine's timings vary: real operations, a fresh process a cell, rounds outermost, two sessions.

    python -m tests.harness.record_noise tests/harness/data/recorded_noise.json --rounds 6 --pause_s 600

writes {"sessions": [{operation: {n: [median seconds of each round]}}, ...]}. One thread. A cell during which other
programs took more than a little of the machine is measured again, so that what is recorded is the noise of a machine
that does nothing else; on a busy one this takes long.
The statistical tests of the regression check draw "the same commit measured twice" from it, once from each session.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import platform
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import torch
from torch.nn.functional import scaled_dot_product_attention

SIZES = tuple(2**power for power in range(7, 16))
QUADRATIC_SIZES = tuple(2**power for power in range(7, 15))
HEADS, DIM, WINDOW = 2, 32, 128
CELL_S = 0.2
PAUSE_S = 0.2
OTHERS = 0.3  # of one core, taken by other programs while a cell is timed


def flash(n: int) -> Callable[[], object]:
    q, k, v = torch.randn(3, 1, HEADS, n, DIM)
    return lambda: scaled_dot_product_attention(q, k, v, is_causal=True)


def window(n: int) -> Callable[[], object]:
    q, k, v = torch.randn(3, HEADS, n // WINDOW, WINDOW, DIM)
    return lambda: (q @ k.transpose(-1, -2)).softmax(-1) @ v


def sort(n: int) -> Callable[[], object]:
    x = torch.randn(HEADS * 4, n)
    return lambda: x.sort(dim=-1)


def cumulative(n: int) -> Callable[[], object]:
    x = torch.randn(HEADS, n, DIM)
    return lambda: (x.exp().cumsum(1), x.cumsum(1))


OPERATIONS = {"flash": flash, "window": window, "sort": sort, "cumulative": cumulative}


def cell_s(operation: str, n: int, answer: multiprocessing.Queue[tuple[float, float]]) -> None:
    """Put the median time of a call, and the share of a core that other programs took meanwhile."""
    torch.set_num_threads(1)
    call = OPERATIONS[operation](n)
    call()
    samples_s: list[float] = []
    busy, own, start = busy_s(), time.process_time(), time.perf_counter()
    while len(samples_s) < 3 or (time.perf_counter() - start < CELL_S and len(samples_s) < 2000):
        begin = time.perf_counter()
        call()
        samples_s.append(time.perf_counter() - begin)
    others = (busy_s() - busy - (time.process_time() - own)) / (time.perf_counter() - start)
    answer.put((statistics.median(samples_s), others))


def busy_s() -> float:
    """CPU seconds that all programs have used."""
    times = psutil.cpu_times()
    return times.user + times.system + getattr(times, "nice", 0.0)


def busy_share(pause_s: float) -> float:
    """Cores that all programs took during a pause."""
    before = busy_s()
    time.sleep(pause_s)
    return (busy_s() - before) / pause_s


def undisturbed_s(operation: str, n: int) -> float:
    context = multiprocessing.get_context("fork")
    while True:
        while busy_share(PAUSE_S) > OTHERS:
            pass
        answer: multiprocessing.Queue[tuple[float, float]] = context.Queue()
        child = context.Process(target=cell_s, args=(operation, n, answer))
        child.start()
        median_s, others = answer.get(timeout=120)
        child.join()
        if others < OTHERS:
            return float(f"{median_s:.5g}")


def session(rounds: int) -> dict[str, dict[int, list[float]]]:
    cells = [(name, n) for name in OPERATIONS for n in (QUADRATIC_SIZES if name == "flash" else SIZES)]
    times: dict[str, dict[int, list[float]]] = {name: {} for name in OPERATIONS}
    for turn in range(rounds):
        for name, n in random.sample(cells, len(cells)):
            times[name].setdefault(n, []).append(undisturbed_s(name, n))
        print(f"round {turn + 1} of {rounds}", flush=True)
    return {name: dict(sorted(by_size.items())) for name, by_size in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description="record timing noise")
    parser.add_argument("path", type=Path)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--pause_s", type=float, default=600)
    arguments = parser.parse_args()
    first = session(arguments.rounds)
    time.sleep(arguments.pause_s)
    sessions = [first, session(arguments.rounds)]
    facts = {"machine": platform.platform(terse=True), "threads": 1, "torch": torch.__version__}
    arguments.path.write_text(json.dumps({**facts, "unit": "s", "sessions": sessions}) + "\n")


if __name__ == "__main__":
    main()
