"""Measure the quality of LSH v2 statistically: what training and sampling give at equal comparisons, and planted keys.

    python -m benchmarks.lsh_v2_quality --learning   trained against untrained codes at equal comparisons, five seeds
    python -m benchmarks.lsh_v2_quality --residual   with samples against without at equal comparisons, five seeds
    python -m benchmarks.lsh_v2_quality --planted    how often a planted key at a uniform distance is found

Nothing is timed here; `conf/lsh_v2.yml` does that. Quality is measured on 16,384 tokens (`--n`) with 4 heads of 64 and
closed gates, at 128 query rows in float64. Codes are trained on a part of the text on which nothing is measured.
"""

from __future__ import annotations

from attentions.common.stopping import exit_on_signal, run_interruptible

if __name__ == "__main__":
    exit_on_signal()  # before the slow imports

import argparse
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from scipy import stats
from torch import Tensor

from attentions import build
from attentions.lsh_v2 import LSHv2
from harness.common.command_line import count
from harness.common.rows import Case
from harness.inputs import CALIBRATION, make_inputs

HEADS, DIM, ROWS = 4, 64, 128


def made(**settings: Any) -> LSHv2:
    """Build an untrained LSH v2 with `HEADS` heads."""
    attention = build("lsh_v2", **{"heads": HEADS, "head_dim": DIM} | settings)
    assert isinstance(attention, LSHv2)
    return attention.eval()


def inputs(kind: str, n: int, seed: int, variant: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Return q, k, v as the harness makes them; variant CALIBRATION is disjoint from the others."""
    case = Case(
        subject="accuracy", backend="lsh_v2", label="", settings={}, level="kernel", mode="forward",
        inputs=kind, n=n, batch=1, heads=HEADS, kv_heads=HEADS, head_dim=DIM, value_dim=DIM, dtype="float32",
        device="cpu", threads=1, causal=True, seed=seed,
    )  # fmt: skip
    found = make_inputs(case, variant)
    return found.q, found.k, found.v


@dataclass(frozen=True)
class Quality:
    """Quality on some rows: relative error against exact attention, attention recall, comparisons per query."""

    error: float
    kept_mass: float
    comparisons: float


def quality(attention: LSHv2, q: Tensor, k: Tensor, v: Tensor) -> Quality:
    """Measure on `ROWS` rows of the whole length; comparisons are a mean over all rows."""
    rows = torch.randperm(q.shape[2], generator=torch.Generator().manual_seed(0))[:ROWS]
    exact, found = attention.target(q, k, v, rows=rows), attention.naive(q, k, v, rows=rows)
    error = ((found - exact).norm() / exact.norm()).item()
    return Quality(error, attention.kept_mass(q, k, rows=rows).mean().item(), comparisons(attention, q, k))


def comparisons(attention: LSHv2, q: Tensor, k: Tensor) -> float:
    """Mean comparisons per query."""
    return attention.comparisons(q, k).double().mean().item() / q.shape[2]


def least_bucket(build_with: Callable[[int], LSHv2], q: Tensor, k: Tensor, wanted: float) -> LSHv2:
    """Return the attention with the smallest bucket_size whose comparisons reach `wanted`."""
    low, high = 1, 1024
    while low < high:
        middle = (low + high) // 2
        if comparisons(build_with(middle), q, k) < wanted:
            low = middle + 1
        else:
            high = middle
    return build_with(low)


def trained_and_untrained(n: int, seed: int) -> list[tuple[LSHv2, Quality]]:
    """Compare trained and untrained codes with buckets only, untrained with at least as many comparisons."""
    bare: dict[str, Any] = {"samples": 0, "compression_factors": [1], "global_context": False}
    q, k, v = inputs("text", n, seed)
    trained = made(seed=seed, **bare)
    trained.prepare(*inputs("text", n, seed, CALIBRATION))
    one = quality(trained, q, k, v)
    plain = least_bucket(lambda size: made(seed=seed, bucket_size=size, **bare), q, k, one.comparisons)
    return [(trained, one), (plain, quality(plain, q, k, v))]


def learning(n: int, first_seed: int, console: Console) -> None:
    """Print both for five seeds, and the ratios of attention recall and error."""
    table = Table("seed", "codes", "bucket_size", "comparisons", "attention recall", "error", title=f"text, n = {n:,}")
    ratios: dict[str, list[float]] = {"attention recall": [], "error": []}
    for seed in range(first_seed, first_seed + 5):
        both = trained_and_untrained(n, seed)
        for name, (attention, it) in zip(("trained", "untrained"), both, strict=True):
            figures = (f"{it.comparisons:.0f}", f"{it.kept_mass:.3f}", f"{it.error:.3f}")
            table.add_row(str(seed), name, str(attention.bucket_size), *figures)
        (_, one), (_, two) = both
        ratios["attention recall"].append(one.kept_mass / two.kept_mass)
        ratios["error"].append(one.error / two.error)
    console.print(table)
    for name, found in ratios.items():
        console.print(f"{name}, trained over untrained: {_interval(found)}")


def residual(n: int, console: Console) -> None:
    """Compare with and without samples; with samples, buckets shrink until comparisons are no more than without."""
    bare: dict[str, Any] = {"hash_steps": 0, "compression_factors": [1], "global_context": False}
    table = Table("inputs", "seed", "error with", "error without", "comparisons with", "without", title=f"n = {n:,}")
    for kind in ("gaussian", "text"):
        for seed in range(5):
            q, k, v = inputs(kind, n, seed)
            without = quality(made(seed=seed, samples=0, **bare), q, k, v)
            grown = least_bucket(
                lambda size, seed=seed: made(seed=seed, bucket_size=size, **bare), q, k, without.comparisons
            )
            it = quality(made(seed=seed, bucket_size=max(grown.bucket_size - 1, 1), **bare), q, k, v)
            row = (f"{it.error:.3f}", f"{without.error:.3f}", f"{it.comparisons:.0f}", f"{without.comparisons:.0f}")
            table.add_row(kind, str(seed), *row)
    console.print(table)


@dataclass(frozen=True)
class PlantedRate:
    """Shares of rows with the planted key in the support: all rows, rows within reach, and for a random support."""

    everywhere: float
    within_reach: float
    by_chance: float
    reach: int


def planted_rate(n: int, *, rows: int, steps: int = 0) -> PlantedRate:
    """Measure how often the support contains the planted key, the heaviest of its row, at a uniform distance."""
    q, k, v = inputs("planted", n, 0)
    attention = made(hash_steps=steps, samples=0, compression_factors=[1], global_context=False)
    attention.prepare(*inputs("planted", n, 0, CALIBRATION))
    chosen = torch.randperm(n, generator=torch.Generator().manual_seed(0))[:rows]
    hits, near, chance = [], [], []
    for support in attention._supports(q, k, v, chosen):
        scores = (q[:, support.head, chosen] @ k[:, support.head].mT)[0]
        future = torch.arange(n) > chosen[:, None]
        heavy = scores.masked_fill(future, -torch.inf).argmax(-1, keepdim=True)
        met = (support.own | support.near)[0]
        hits.append(met.gather(1, heavy)[:, 0].double())
        near.append((chosen - heavy[:, 0]) <= attention.reach)
        chance.append(met.sum(-1) / (chosen + 1))
    hit, within = torch.cat(hits), torch.cat(near)
    return PlantedRate(hit.mean().item(), hit[within].mean().item(), torch.cat(chance).mean().item(), attention.reach)


def planted(n: int, console: Console) -> None:
    """Print the rate for untrained and trained codes."""
    for steps in (0, 200):
        it = planted_rate(n, rows=256, steps=steps)
        console.print(
            f"planted, n = {n:,}, {steps} steps of training, reach {it.reach:,}: found {it.everywhere:.1%}, "
            f"within reach {it.within_reach:.1%}, a random support of the same size {it.by_chance:.1%}"
        )


def _interval(values: list[float]) -> str:
    found: Any = stats.ttest_1samp(values, 0)
    interval = found.confidence_interval(0.95)
    mean = statistics.mean(values)
    return f"{mean:.3f} ({interval.low:.3f} to {interval.high:.3f}, Student, {len(values)} seeds)"


def main() -> None:
    """Print the requested tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=count(64, 2**24), help="tokens; default 65,536 for planted keys, otherwise 16,384")
    parser.add_argument("--first-seed", type=count(0), default=0, help="of the five of --learning")
    experiment = parser.add_mutually_exclusive_group(required=True)
    experiment.add_argument("--learning", action="store_true", help="trained against untrained codes")
    experiment.add_argument("--residual", action="store_true", help="with samples against without")
    experiment.add_argument("--planted", action="store_true", help="how often a planted key is found")
    chosen = parser.parse_args()
    console = Console(width=110)
    with torch.no_grad():
        if chosen.learning:
            learning(chosen.n or 16_384, chosen.first_seed, console)
        elif chosen.residual:
            residual(chosen.n or 16_384, console)
        else:
            planted(chosen.n or 65_536, console)


if __name__ == "__main__":
    raise SystemExit(run_interruptible(main))
