"""Record how this machine's timings vary: real operations, a fresh process a cell, rounds outermost, two sessions.

    python -m tests.harness.record_noise tests/harness/data/recorded_noise.json --rounds 6 --pause_s 600

writes {"sessions": [{operation: {n: [median CPU seconds of each round]}}, ...]}. One thread, and CPU time for wall
time: on a quiet machine the two are the same, and on a busy one (as when this was recorded) CPU time leaves out the
other programs' turns but keeps what they do to caches and clocks, so that the noise is rather too large.
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

import torch
from torch.nn.functional import scaled_dot_product_attention

SIZES = tuple(2**power for power in range(7, 16))
QUADRATIC_SIZES = tuple(2**power for power in range(7, 15))
HEADS, DIM, WINDOW = 2, 32, 128
CELL_S = 0.2


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


def cell_s(operation: str, n: int, answer: multiprocessing.Queue[float]) -> None:
    torch.set_num_threads(1)
    call = OPERATIONS[operation](n)
    call()
    samples_s: list[float] = []
    end = time.thread_time() + CELL_S
    while len(samples_s) < 3 or (time.thread_time() < end and len(samples_s) < 200):
        start = time.thread_time()
        call()
        samples_s.append(time.thread_time() - start)
    answer.put(statistics.median(samples_s))


def session(rounds: int) -> dict[str, dict[int, list[float]]]:
    cells = [(name, n) for name in OPERATIONS for n in (QUADRATIC_SIZES if name == "flash" else SIZES)]
    times: dict[str, dict[int, list[float]]] = {name: {} for name in OPERATIONS}
    context = multiprocessing.get_context("fork")
    for _ in range(rounds):
        for name, n in random.sample(cells, len(cells)):
            answer: multiprocessing.Queue[float] = context.Queue()
            child = context.Process(target=cell_s, args=(name, n, answer))
            child.start()
            times[name].setdefault(n, []).append(float(f"{answer.get(timeout=120):.5g}"))
            child.join()
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
    arguments.path.write_text(json.dumps({**facts, "unit": "CPU seconds", "sessions": sessions}) + "\n")


if __name__ == "__main__":
    main()
