"""A made-up run that looks like a real one: exact methods, an approximation and two controls, with cells missing.

Times follow a floor plus a power of n with the noise of rounds; nothing here was measured.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.common.rows import Row

LENGTHS = tuple(2**power for power in range(7, 19))
ROUNDS = 3
KIB, MIB = 2.0**10, 2.0**20


@dataclass(frozen=True)
class Made:
    """How a made-up method behaves: time floor_s + per_unit_s · n^exponent, errors by inputs."""

    label: str
    exponent: float
    floor_s: float
    at_1k_s: float
    bytes_exponent: float = 1.0
    bytes_at_1k: float = 0.3 * MIB
    backend: str = ""
    errors: Mapping[str, float] = field(default_factory=dict)
    kept: float = 1.0
    exact: bool = False
    control: bool = False
    claimed: str = "n"
    longest: int = LENGTHS[-1]
    why: tuple[str, str] = ("skipped", "predicted 41.2 s from shorter lengths, more than budget.case_s = 20")
    leak: float = 0.0


VANILLA = Made(
    "vanilla",
    2.0,
    40e-6,
    9e-3,
    bytes_exponent=2.0,
    bytes_at_1k=33 * MIB,
    exact=True,
    claimed="n^2",
    longest=16384,
    why=("oom", "DefaultCPUAllocator: can't allocate memory: you tried to allocate 34359738368 bytes"),
)
FLASH = Made("flash", 1.99, 25e-6, 1.6e-3, exact=True, claimed="n^2", longest=65536)
BITS = Made(
    "bit_sampling",
    1.06,
    180e-6,
    3.1e-3,
    bytes_at_1k=2.1 * MIB,
    errors={"text": 0.11, "planted": 0.16, "gaussian": 0.74},
    kept=0.86,
)
WINDOW = Made(
    "window",
    1.01,
    90e-6,
    1.9e-3,
    errors={"text": 0.38, "planted": 0.97, "gaussian": 0.81},
    kept=0.41,
    control=True,
    backend="sliding_window",
)
RANDOM = Made(
    "random",
    1.02,
    90e-6,
    2.6e-3,
    errors={"text": 0.92, "planted": 0.99, "gaussian": 0.83},
    kept=0.06,
    control=True,
    backend="random_support",
)
MADE = (VANILLA, FLASH, BITS, WINDOW, RANDOM)
DEFAULTS: dict[str, Any] = {
    "subject": "attention",
    "settings": {},
    "level": "kernel",
    "mode": "forward",
    "inputs": "text",
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


def made_rows(
    made: Sequence[Made] = MADE, lengths: Sequence[int] = LENGTHS, rounds: int = ROUNDS, **identity: Any
) -> list[Row]:
    """Rows of every method at every length and round, under the given circumstances."""
    case = DEFAULTS | identity
    return [made_row(method, n, round_, case) for round_ in range(rounds) for method in made for n in lengths]


def made_row(method: Made, n: int, round_: int, case: Mapping[str, Any]) -> Row:
    """One row: a time and its metrics up to the method's longest length, a status and its reason beyond."""
    base: dict[str, Any] = {
        **case,
        "backend": method.backend or method.label,
        "label": method.label,
        "control": method.control,
        "n": n,
        "run": "2026-01-31T12-00-00",
        "key": f"{method.label}-{n}",
        "round": round_,
    }
    if n > method.longest:
        return Row(**base, status=method.why[0], reason=method.why[1])  # pyright: ignore[reportArgumentType]
    noise = random.Random(f"{method.label}{n}{round_}{case['inputs']}{case['mode']}")
    factor = 3.1 if case["mode"] == "train" else 1.0
    time_s = factor * (method.floor_s + method.at_1k_s * (n / 1024) ** method.exponent) * noise.lognormvariate(0, 0.025)
    moved = method.bytes_at_1k * (n / 1024) ** method.bytes_exponent + n * 256 * 4
    pairs = 4 * n * (n + 1) / 2 if method.exact else 4 * n * min(n, 96)
    flops = pairs * 256
    return Row(
        **base,
        status="ok",
        kernel="torch-flash-cpu" if method.label == "flash" else "torch",
        wall_s=0.7 + 20 * time_s,
        measured_s=20 * time_s,
        others_share=0.02,
        samples_s=[time_s * noise.lognormvariate(0, 0.01) for _ in range(5)],
        time_s=time_s,
        tokens_per_s=n / time_s,
        prepare_s=None if method.exact else 2e-4,
        peak_bytes=moved + noise.uniform(0, 64 * KIB),
        allocator_bytes=moved,
        output_bytes=n * 256 * 4,
        flops=flops,
        comparisons=pairs,
        comparisons_bound=pairs,
        flops_per_s=flops / time_s,
        roofline_share=min(0.97, flops / time_s / 1.1e11),
        metrics=_metrics(method, n, case),
    )


def _metrics(method: Made, n: int, case: Mapping[str, Any]) -> dict[str, float]:
    """Accuracy that slowly gets worse with length; exact methods are off by rounding."""
    if method.exact:
        return {"error": 3.1e-7, "error_v": 1.2e-7, "kept_mass": 1.0, "naive_error": 3.0e-7, "leak": 0.0}
    growth = 1 - 0.75 ** max(0.0, (n / 256))
    error = method.errors.get(case["inputs"], 0.3) * growth * (n / 4096) ** 0.04
    shrunk = 0.02 if case["inputs"] == "gaussian" else 0.8
    kept = method.kept + (1 - method.kept) * (1 - growth)
    return {"error": error, "error_v": error * shrunk, "kept_mass": kept, "naive_error": 2.2e-6, "leak": method.leak}


def made_facts(made: Sequence[Made] = MADE, **changes: Any) -> dict[str, Any]:
    """What `run.json` would hold."""
    facts: dict[str, Any] = {
        "run": "2026-01-31T12-00-00",
        "schema": 1,
        "started": "2026-01-31T12:00:00+00:00",
        "finished": "2026-01-31T12:07:41+00:00",
        "command": "python -m harness.sweep conf.yml --out reports/runs/2026-01-31T12-00-00",
        "commit": "0123456789abcdef0123456789abcdef01234567",
        "dirty": False,
        "machine": {
            "name": "xeon-2c",
            "cpu": "Intel Xeon Platinum 8481C @ 2.70 GHz",
            "cores": 2,
            "memory_bytes": 8 * 2.0**30,
            "gpu": "",
            "os": "Linux 6.18, glibc 2.36",
        },
        "versions": {"python": "3.11.9", "torch": "2.13.0+cpu", "numpy": "2.4.6"},
        "ceilings": {"flops_per_s": {"float32": 1.12e11, "bfloat16": 2.4e11}, "copy_bytes_per_s": 1.31e10},
        "config": {
            "backends": [method.label for method in made],
            "lengths": list(LENGTHS),
            "inputs": ["text", "planted", "gaussian"],
            "budget": {"case_s": 20.0, "memory_gb": 4.0, "total_s": 780.0},
        },
        "class_facts": {
            method.label: {
                "paper": f"https://arxiv.org/abs/{method.label}",
                "exact": method.exact,
                "approximates": "softmax",
                "claimed_time": method.claimed,
                "causality": "strict",
            }
            for method in made
        },
    }
    return facts | changes


def write_run(folder: Path, rows: Sequence[Row], facts: Mapping[str, Any]) -> Path:
    """A run's folder as a sweep leaves it, without the report."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [row.model_dump_json(by_alias=True) + "\n" for row in rows]
    (folder / "rows.jsonl").write_text("".join(lines), encoding="utf-8")
    (folder / "run.json").write_text(json.dumps(facts), encoding="utf-8")
    return folder


def usual_rows() -> list[Row]:
    """Text at every length, and planted and Gaussian inputs at a few."""
    few = LENGTHS[3::2]
    return made_rows() + made_rows(lengths=few, inputs="planted") + made_rows(lengths=few, inputs="gaussian")
