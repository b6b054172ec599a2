"""Curves and rows whose truth is known, for tests of everything that judges measurements."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.common.rows import Row, Status

OCTAVES = tuple(2**power for power in range(10, 19))  # 1K to 256K
LAWS: dict[str, Callable[[NDArray[np.float64]], NDArray[np.float64]]] = {
    "n": lambda n: n,
    "n log n": lambda n: n * np.log(n),
    "n^1.5": lambda n: n**1.5,
    "n^2": lambda n: n**2,
}
IDENTITY = {
    "subject": "attention",
    "settings": {},
    "level": "kernel",
    "mode": "forward",
    "inputs": "gaussian",
    "batch": 1,
    "heads": 4,
    "kv_heads": 4,
    "head_dim": 64,
    "value_dim": 64,
    "dtype": "float32",
    "device": "cpu",
    "threads": 2,
    "causal": True,
    "seed": 0,
}


def curve_s(law: str, *, floor: float = 0.0, sizes: Sequence[int] = OCTAVES) -> NDArray[np.float64]:
    """Seconds at each size: a millisecond of work at 1K and `floor` times as much that does not grow."""
    n = np.array(sizes, dtype=np.float64)
    grow = LAWS[law]
    return 1e-3 * (floor + grow(n) / grow(np.array([1024.0])))


def noisy(
    seconds: NDArray[np.float64],
    rng: np.random.Generator,
    *,
    noise: float = 0.03,
    rounds: int = 3,
    sizes: Sequence[int] = OCTAVES,
) -> dict[int, list[list[float]]]:
    """Samples for a fit: one a round, each off by its own relative error."""
    errors = np.exp(noise * rng.standard_normal((len(seconds), rounds)))
    return {n: [[float(time)] for time in times] for n, times in zip(sizes, seconds[:, None] * errors, strict=True)}


def row(n: int, *, label: str = "planted", turn: int = 0, status: Status = "ok", **fields: Any) -> Row:
    """A row of round `turn`; `fields` are any others of it."""
    identity = {**IDENTITY, "backend": label, "label": label, "n": n}
    outcome = {"schema": 1, "run": "r", "key": "k", "round": turn, "status": status}
    return Row.model_validate({**identity, **outcome, **fields})


def timed_rows(times_s: Mapping[int, Sequence[float]], *, label: str = "planted", **fields: Any) -> list[Row]:
    """A row for each size and round."""
    return [
        row(n, label=label, turn=turn, samples_s=[time], time_s=time, **fields)
        for n, rounds in times_s.items()
        for turn, time in enumerate(rounds)
    ]


def write_run(folder: Path, rows: Sequence[Row], *, machine: str = "box", run: str = "a run") -> Path:
    """A run folder as a sweep leaves it, as far as comparisons read it."""
    folder.mkdir(parents=True, exist_ok=True)
    facts = {"run": run, "schema": 1, "commit": "abc", "machine": {"name": machine}}
    (folder / "run.json").write_text(json.dumps(facts))
    (folder / "rows.jsonl").write_text("".join(one.model_dump_json(by_alias=True) + "\n" for one in rows))
    return folder
