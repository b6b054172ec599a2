"""Evaluates the guide's success flags and the quick training's targets from the measurements alone.

A flag holds, does not hold, or is not judged, and names the figure that decides it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lsh_v2.common.files import read_object
from lsh_v2.common.schemas import (
    ArenaCost,
    ArenaRun,
    ArenaSummary,
    FittedExponent,
    FlagMetrics,
    Grade,
    MachineNames,
    Schema,
)

if TYPE_CHECKING:
    from lsh_v2.pipeline.phases import Layout

FEASIBLE = 65_536  # tokens that must finish within the memory and time limits
TIME_EXPONENT = 1.2
MEMORY_EXPONENT = (0.85, 1.15)  # "about 1.0"
THROUGHPUT = 10_000.0  # tokens per second, required on an A100
ODD_TIMES_CHANCE = 3.0
BUCKETS_RIGHT = 0.5


@dataclass(frozen=True)
class Flag:
    """A claim; whether it `holds` (None: not judged); and the `figure` that decides it, as text."""

    claim: str
    holds: bool | None
    figure: str


def flags_of(layout: Layout, without: Collection[Path] = ()) -> list[Flag]:
    """Return all flags, computed from the metrics files in the layout's folders, ignoring the files in `without`.

    Raises ValueError for a damaged file.
    """

    def there(path: Path, kind: type[Schema]) -> Schema | None:
        return None if path in without else read_object(path, kind)

    summary = there(layout.benchmark / "benchmark_summary.json", ArenaSummary)
    metrics = there(layout.training / "training_metrics.json", FlagMetrics)
    facts = there(layout.benchmark / "run.json", ArenaRun) or ArenaRun()
    return [*_benchmark_flags(summary, facts.machine), *_training_flags(metrics)]


def shown(flags: Sequence[Flag]) -> str:
    """Format the flags as lines of text."""
    words = {True: "yes", False: "NO", None: "not judged"}
    width = max(len(flag.claim) for flag in flags)
    return "\n".join(f"  {flag.claim:<{width}}  {words[flag.holds]:<10}  {flag.figure}" for flag in flags)


def _benchmark_flags(summary: ArenaSummary | None, machine: MachineNames) -> Iterator[Flag]:
    claims = (
        f"{FEASIBLE:,} tokens feasible",
        f"time exponent at most {TIME_EXPONENT}",
        "memory exponent about 1",
        f"more than {THROUGHPUT:,.0f} tokens per second",
    )
    if summary is None or not summary.costs:
        yield from (Flag(claim, None, "the long arena has not run") for claim in claims)
        return
    label = judged_label(summary)
    costs = [cost for cost in summary.costs if cost.attention == label]
    scaling = summary.scaling[label]
    yield _feasible(claims[0], label, costs)
    yield _exponent(claims[1], label, scaling.time, 0.0, TIME_EXPONENT)
    yield _exponent(claims[2], label, scaling.memory, *MEMORY_EXPONENT)
    yield _throughput(claims[3], label, costs, machine)


def judged_label(summary: ArenaSummary) -> str:
    """Return the series that the flags judge: the trained model if it was timed, else lsh_v2, else the first."""
    labels = list(summary.scaling)
    return next((label for label in ("checkpoint", "lsh_v2") if label in labels), labels[0])


def _feasible(claim: str, label: str, costs: Sequence[ArenaCost]) -> Flag:
    there = [cost for cost in costs if cost.seq_len >= FEASIBLE]
    if not there:
        longest = max((cost.seq_len for cost in costs), default=0)
        return Flag(claim, None, f"{label}: the longest requested length is {longest:,}")
    done = [cost for cost in there if cost.status == "ok"]
    if done:
        figure = f"{(done[0].latency_ms or 0) / 1e3:.3g} s, {done[0].rss_mb or 0:,.0f} MB resident"
        return Flag(claim, True, f"{label}: {done[0].seq_len:,} tokens in {figure}")
    return Flag(claim, False, f"{label}: {there[0].status}: {there[0].reason}")


def _exponent(claim: str, label: str, fit: FittedExponent | None, least: float, most: float) -> Flag:
    if fit is None:
        return Flag(claim, None, f"{label}: fewer than three lengths were measured")
    low, high = fit.interval
    figure = f"{label}: {fit.exponent:.2f}, 95 % interval {low:.2f} to {high:.2f}, {fit.verdict}"
    if not fit.identified:
        return Flag(claim, None, figure)
    inside, outside = least <= low and high <= most, high < least or low > most
    return Flag(claim, True if inside else False if outside else None, figure)


def _throughput(claim: str, label: str, costs: Sequence[ArenaCost], machine: MachineNames) -> Flag:
    done = [(cost.tokens_per_sec, cost.seq_len) for cost in costs if cost.tokens_per_sec]
    if not done:
        return Flag(claim, None, f"{label}: no length was timed")
    rate, n = max(done, key=lambda pair: pair[0])
    place = machine.gpu or machine.cpu or "this machine"
    figure = f"{label}: {rate:,.0f} at {n:,} tokens on {place}"
    if not machine.gpu:
        return Flag(claim, None, f"{figure}; the guide requires it of an A100")
    return Flag(claim, rate > THROUGHPUT, figure)


def _training_flags(metrics: FlagMetrics | None) -> Iterator[Flag]:
    claims = (
        "loss of the last epoch below that of the first",
        f"odd one out at least {ODD_TIMES_CHANCE:g} times chance",
        f"hashing: at least {BUCKETS_RIGHT:.0%} of buckets right",
    )
    if metrics is None or not metrics.finished:
        yield from (Flag(claim, None, "the training has not finished") for claim in claims)
        return
    yield _fallen(claims[0], metrics)
    odd, sets = (metrics.accuracy.get(name) for name in ("odd_one_out", "set_data"))
    yield _scored(claims[1], odd, ODD_TIMES_CHANCE * odd.chance if odd else 0.0)
    yield _scored(claims[2], sets, BUCKETS_RIGHT)


def _fallen(claim: str, metrics: FlagMetrics) -> Flag:
    interval = metrics.loss_drop_interval
    if not interval:
        return Flag(claim, None, "fewer than two epochs of two steps")
    first, last = metrics.loss_train[0], metrics.loss_train[-1]
    figure = f"{first:.4f} to {last:.4f}; fall, 95 % interval {interval[0]:.4f} to {interval[1]:.4f}"
    return Flag(claim, True if interval[0] > 0 else False if interval[1] < 0 else None, figure)


def _scored(claim: str, found: Grade | None, least: float) -> Flag:
    if found is None:
        return Flag(claim, None, "no answer was graded")
    figure = f"{found.score:.3f} ± {found.standard_error:.3f} of {found.examples:.0f} held-out examples"
    return Flag(claim, found.score >= least, f"{figure}; chance {found.chance:.3f}")
