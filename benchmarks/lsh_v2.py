"""Measure LSH v2: speed relative to flash, and the effect of each part, of training and of sampling.

    python -m benchmarks.lsh_v2                 ratio to flash, throughput and memory, about two minutes on two cores
    python -m benchmarks.lsh_v2 --scaling       exponents of time, by stage, and of memory from 1K to 256K
    python -m benchmarks.lsh_v2 --ablation      each part off in turn: time, error, attention recall on text
    python -m benchmarks.lsh_v2 --learning      trained against untrained codes at equal comparisons, five seeds
    python -m benchmarks.lsh_v2 --residual      with samples against without at equal comparisons, five seeds
    python -m benchmarks.lsh_v2 --planted       how often a planted key at a uniform distance is found
    python -m benchmarks.lsh_v2 --decoding      one token after 1K to 32K on one thread, and the state it leaves

Quality is measured on 16,384 tokens (`--n`) with 4 heads of 64 and closed gates, at 128 query rows in float64. Codes
are trained on a part of the text on which nothing is measured.
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
from benchmarks.side_by_side import gaussian, medians
from harness.common.command_line import count
from harness.common.rows import Case
from harness.inputs import CALIBRATION, make_inputs
from harness.measure.elapsed import Elapsed, seconds_of
from harness.measure.memory import resident_peak, return_freed_memory
from harness.report.tables.components import plain_slope
from harness.stats.scaling import fit_scaling

HEADS, DIM, ROWS = 4, 64, 128
OFF: dict[str, dict[str, Any]] = {
    "all parts on": {},
    "no buckets": {"n_hashes": 0},
    "codes untrained": {"hash_steps": 0},
    "no samples": {"samples": 0},
    "no compression": {"compression_factors": [1]},
    "no global context": {"global_context": False},
}


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


def speed(n: int, rounds: int, console: Console) -> None:
    """Print times relative to flash's, and each stage's share."""
    q, k, v = gaussian(n)
    attention, flash = made(), build("flash", heads=HEADS, head_dim=DIM)
    calls = {"flash": lambda: flash(q, k, v), "lsh_v2": lambda: attention(q, k, v)}
    calls |= {f"  {name}": stage for name, stage in attention.components(q, k, v).items()}
    found = medians(calls, rounds=rounds)
    stages = sum(seconds for name, seconds in found.items() if name.startswith("  "))
    table = Table("what", "seconds", "share of stages", title=f"forward, causal, n = {n:,}, {HEADS} heads of {DIM}")
    for name, seconds in found.items():
        table.add_row(name, f"{seconds:.3f}", f"{seconds / stages:.1%}" if name.startswith("  ") else "")
    console.print(table, f"flash / lsh_v2: {found['flash'] / found['lsh_v2']:.1f}")


def throughput(n: int, rounds: int, console: Console) -> None:
    """Print the throughput of one attention with 12 heads of 64, and its peak memory."""
    q, k, v = gaussian(n, heads=12)
    attention = made(heads=12)
    seconds = medians({"it": lambda: attention(q, k, v)}, rounds=rounds)["it"]
    attention(*(x[:, :, :256] for x in (q, k, v)))
    return_freed_memory()
    out, peak = resident_peak(lambda: attention(q, k, v))
    console.print(f"12 heads of 64, n = {n:,}: {seconds:.2f} s, {n / seconds:,.0f} tokens/s")
    if peak is not None:
        held = sum(x.nbytes for x in (q, k, v, out))
        console.print(f"peak {peak / 2**20:,.0f} MiB, output included; q, k, v and out are {held / 2**20:,.0f} MiB")


def scaling(longest: int, rounds: int, console: Console) -> None:
    """Print exponents over octaves from 1K: the plain log-log slope, and the fit with the floor removed."""
    lengths = [n for n in (2**i for i in range(10, 30)) if n <= longest]
    attention = made()
    samples: dict[str, dict[int, list[list[float]]]] = {}
    peaks: dict[int, list[list[float]]] = {}
    for n in lengths:
        inputs_here = gaussian(n)
        stages = {"all": lambda x=inputs_here: attention(*x), **attention.components(*inputs_here)}
        for name, stage in stages.items():
            stage()
            samples.setdefault(name, {})[n] = [[seconds_of(stage)] for _ in range(rounds)]
        del stages
        return_freed_memory()
        out, peak = resident_peak(lambda x=inputs_here: attention(*x))
        peaks[n] = [[float(peak or 0) + sum(x.nbytes for x in inputs_here)]]
        del out
    table = Table(
        "what", f"at {longest:,}", "plain slope", "exponent, floor taken off", "from 4K", "verdict", "claimed"
    )
    claims = {"all": 0.90} | {name: exponent for name, (_, exponent) in attention.claimed_components.items()}
    for name, found in samples.items():
        table.add_row(name, f"{found[longest][0][0]:.3f} s", *_growth(found), str(claims.get(name, "")))
    table.add_row("memory, inputs and peak", f"{peaks[longest][0][0] / 2**20:,.0f} MiB", *_growth(peaks), "1.05")
    console.print(table)


def _growth(found: dict[int, list[list[float]]]) -> tuple[str, str, str, str]:
    """Return plain slope, exponent with interval over all lengths and from 4K, and verdict."""
    plain = plain_slope({n: statistics.median(x[0] for x in rounds) for n, rounds in found.items()})
    fits = [fit_scaling(found), fit_scaling({n: rounds for n, rounds in found.items() if n >= 4096})]
    every, long = (f"{fit.exponent:.2f} ({fit.interval[0]:.2f} to {fit.interval[1]:.2f})" for fit in fits)
    return f"{plain:.2f}", every, long, fits[0].verdict


def ablation(n: int, rounds: int, console: Console) -> None:
    """Print results with each part off in turn. The gates are closed, so the scan costs time and changes no output."""
    sample, calibration = inputs("text", n, 0), inputs("text", n, 0, CALIBRATION)
    attentions = {name: made(**settings) for name, settings in OFF.items()}
    for attention in attentions.values():
        attention.prepare(*calibration)
    times = medians({name: (lambda a=a: a(*sample)) for name, a in attentions.items()}, rounds=rounds)
    table = Table("parts", "seconds", "error", "kept mass", "comparisons a query", title=f"text, n = {n:,}")
    for name, attention in attentions.items():
        it = quality(attention, *sample)
        table.add_row(name, f"{times[name]:.3f}", f"{it.error:.3f}", f"{it.kept_mass:.3f}", f"{it.comparisons:.0f}")
    console.print(table)


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
    table = Table("seed", "codes", "bucket_size", "comparisons", "kept mass", "error", title=f"text, n = {n:,}")
    ratios: dict[str, list[float]] = {"kept mass": [], "error": []}
    for seed in range(first_seed, first_seed + 5):
        both = trained_and_untrained(n, seed)
        for name, (attention, it) in zip(("trained", "untrained"), both, strict=True):
            figures = (f"{it.comparisons:.0f}", f"{it.kept_mass:.3f}", f"{it.error:.3f}")
            table.add_row(str(seed), name, str(attention.bucket_size), *figures)
        (_, one), (_, two) = both
        ratios["kept mass"].append(one.kept_mass / two.kept_mass)
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


def decoding(longest: int, console: Console) -> None:
    """Print the CPU time of 128 single tokens after prompts of several lengths."""
    table = Table("tokens before", "ms a token, median", "longest", "state, MiB", title="decoding, one thread")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    for n in (n for n in (1024, 4096, 32_768, 262_144) if n <= longest):
        stream = made().stream(1)
        assert stream is not None, "it is causal"
        sample, times_s = gaussian(n + 128), []
        for piece in zip(*(x[:, :, :n].split(16_384, dim=2) for x in sample), strict=True):
            stream.extend(*piece)
        for t in range(n, n + 128):
            elapsed = Elapsed("processor")
            stream.extend(*(x[:, :, t : t + 1] for x in sample))
            times_s.append(elapsed.seconds())
        milliseconds = (f"{1e3 * x:.2f}" for x in (statistics.median(times_s), max(times_s)))
        table.add_row(f"{n:,}", *milliseconds, f"{stream.state_bytes / 2**20:.1f}")
    torch.set_num_threads(before)
    console.print(table)


def _interval(values: list[float]) -> str:
    found: Any = stats.ttest_1samp(values, 0)
    interval = found.confidence_interval(0.95)
    mean = statistics.mean(values)
    return f"{mean:.3f} ({interval.low:.3f} to {interval.high:.3f}, Student, {len(values)} seeds)"


def main() -> None:
    """Print the requested tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--n", type=count(64, 2**24), help="tokens; default 65,536 for speed and planted keys, 16,384 for quality"
    )
    parser.add_argument("--rounds", type=count(), default=3)
    parser.add_argument("--first-seed", type=count(0), default=0, help="of the five of --learning")
    for name in ("scaling", "ablation", "learning", "residual", "planted", "decoding"):
        parser.add_argument(f"--{name}", action="store_true")
    chosen = parser.parse_args()
    console, short = Console(width=110), chosen.n or 16_384
    with torch.no_grad():
        if chosen.ablation:
            ablation(short, chosen.rounds, console)
        elif chosen.scaling:
            scaling(chosen.n or 262_144, chosen.rounds, console)
        elif chosen.learning:
            learning(short, chosen.first_seed, console)
        elif chosen.residual:
            residual(short, console)
        elif chosen.planted:
            planted(chosen.n or 65_536, console)
        elif chosen.decoding:
            decoding(chosen.n or 32_768, console)
        else:
            speed(chosen.n or 65_536, chosen.rounds, console)
            throughput(2 * (chosen.n or 65_536), 1, console)


if __name__ == "__main__":
    raise SystemExit(run_interruptible(main))
