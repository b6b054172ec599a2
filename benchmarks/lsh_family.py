"""Compare the LSH family with flash, as ratios from one run; batch 1, 4 heads of 64, float32, causal.

    python -m benchmarks.lsh_family                    the whole table, about ten minutes on two cores
    python -m benchmarks.lsh_family --n 16384          quicker, shorter
    python -m benchmarks.lsh_family --accuracy         error and attention recall by tables on real text instead

Methods take turns; each figure is a median over `--rounds`. Executed FLOPs are those of the native kernel's own
blocks; useful FLOPs are 4·64 per query-key pair. `reformer-pytorch` is included if it is installed.
"""

from __future__ import annotations

from attentions.common.stopping import exit_on_signal, run_interruptible

if __name__ == "__main__":
    exit_on_signal()  # before the slow imports

import argparse
import importlib.util
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from attentions import Attention, build
from attentions.buckets.attention import BucketAttention
from attentions.buckets.window_attention import window_attention
from benchmarks.side_by_side import forward_and_backward, gaussian, medians
from harness.common.command_line import count
from harness.measure.memory import resident_peak, return_freed_memory

if TYPE_CHECKING:
    from attentions.common.windows import Windows

HEADS, DIM = 4, 64
BLOCK, GROUP = 32, 4  # of the native kernel
METHODS: dict[str, dict[str, object]] = {
    "bit_sampling": {"bits": 8, "tables": 1, "window": 128},
    "simhash": {"bits": 8, "tables": 1, "window": 128},
    "bit_sampling, 4 tables": {"bits": 8, "tables": 4, "window": 128},
    "lsh_forest": {"trees": 4, "max_candidates": 256},
    "reformer": {"hashes": 4, "chunk": 64},
}


def made(label: str, n: int) -> Attention:
    """Build one of `METHODS`, in eval mode."""
    return build(label.split(",")[0], heads=HEADS, head_dim=DIM, max_len=n, **METHODS[label]).eval()


def executed_flops(tables: list[Windows]) -> float:
    """FLOPs of the native kernel: scores of whole blocks, values of groups of queries."""
    total = 0.0
    for table in tables:
        start, end = (x.gather(1, table.query_order.long()) for x in (table.start, table.end))
        for x in range(len(start)):
            for size in (BLOCK, GROUP):
                edges = [y[x][: y.shape[1] // size * size].view(-1, size) for y in (start, end)]
                total += 2 * DIM * size * float((edges[1].amax(1) - edges[0].amin(1)).sum())
    return total


def lucidrains(n: int, q: Tensor, v: Tensor) -> Callable[[], object] | None:
    """reformer-pytorch's attention with our settings, or None if it is not installed."""
    if importlib.util.find_spec("reformer_pytorch") is None:
        return None
    peer = importlib.import_module("reformer_pytorch").LSHAttention(bucket_size=64, n_hashes=4, causal=True)
    return lambda: peer(q.flatten(0, 1), v.flatten(0, 1))


def speed(n: int, rounds: int, console: Console) -> None:
    """Print ratios to flash for the forward pass, with pairs per query and kernel rates."""
    q, k, v = gaussian(n)
    attentions = {"flash": build("flash", heads=HEADS, head_dim=DIM), **{name: made(name, n) for name in METHODS}}
    calls: dict[str, Callable[[], object]] = {name: _no_grad(a, (q, k, v)) for name, a in attentions.items()}
    if peer := lucidrains(n, q, v):
        calls["reformer-pytorch"] = torch.no_grad()(peer)
    windows = {name: a.windows(q, k) for name, a in attentions.items() if isinstance(a, BucketAttention)}
    for name, tables in windows.items():
        calls[f"{name}: kernel"] = _kernel(q, k, v, tables)
    found = medians(calls, rounds=rounds)
    flash_rate = 4 * HEADS * DIM * n * n / 2 / found["flash"]
    table = Table("method", "seconds", "flash / it", "pairs a query", "useful", "executed", title=f"forward, n = {n:,}")
    for name, seconds in list(found.items()):
        if name not in found or name.endswith(": kernel"):
            continue
        pairs = useful = executed = ""
        attention = attentions.get(name)
        if attention is not None and name != "flash":
            scored = float(attention.comparisons(q, k).sum())
            pairs = f"{scored / HEADS / n:.0f}"
            useful = f"{4 * DIM * scored / seconds / flash_rate:.2f}"
            if name in windows:
                alone = found.pop(f"{name}: kernel")
                useful = f"{4 * DIM * scored / alone / flash_rate:.2f}"
                executed = f"{executed_flops(windows[name]) / alone / flash_rate:.2f}"
        table.add_row(name, f"{seconds:.3f}", f"{found['flash'] / seconds:.1f}", pairs, useful, executed)
    console.print(table, "useful and executed: FLOP/s over flash's own, of the window kernel alone where it has one")
    if "reformer-pytorch" in found:
        console.print(f"reformer is {found['reformer-pytorch'] / found['reformer']:.1f}x reformer-pytorch")


def backward(n: int, rounds: int, console: Console) -> None:
    """Print the ratio to flash of forward and backward, for one table."""
    inputs = gaussian(n)
    flash = build("flash", heads=HEADS, head_dim=DIM)
    calls = {name: forward_and_backward(a, inputs) for name, a in (("flash", flash), ("it", made("bit_sampling", n)))}
    found = medians(calls, rounds=rounds)
    console.print(f"forward and backward, n = {n:,}: bit_sampling is {found['flash'] / found['it']:.1f}x flash")


def memory(n: int, console: Console) -> None:
    """Print the resident peak beyond inputs and output, relative to the bytes of q, k, v and out."""
    inputs = gaussian(n)
    attention = made("bit_sampling", n)
    with torch.no_grad():
        attention(*(x[:, :, :256] for x in inputs))
        return_freed_memory()
        out, peak = resident_peak(lambda: attention(*inputs))
    if peak is not None:
        tensors = sum(x.nbytes for x in (*inputs, out))
        console.print(f"peak beyond inputs and output, n = {n:,}: {(peak - out.nbytes) / tensors:.2f}x q, k, v, out")


def crossover(rounds: int, console: Console) -> None:
    """Print ratios to flash at the lengths around which one table overtakes it."""
    for n in (1024, 2048, 4096):
        inputs = gaussian(n)
        pair = {"flash": build("flash", heads=HEADS, head_dim=DIM), "it": made("bit_sampling", n)}
        found = medians({name: _no_grad(a, inputs) for name, a in pair.items()}, rounds=5 * rounds)
        console.print(f"n = {n:,}: bit_sampling is {found['flash'] / found['it']:.2f}x flash")


def accuracy(n: int, console: Console) -> None:
    """Print error and attention recall on real text as tables are added; bits 8, window 128."""
    from harness.common.rows import Case
    from harness.inputs import make_inputs

    case = Case(
        subject="accuracy", backend="bit_sampling", label="", settings={}, level="kernel", mode="forward",
        inputs="text", n=n, batch=1, heads=HEADS, kv_heads=HEADS, head_dim=DIM, value_dim=DIM, dtype="float32",
        device="cpu", threads=2, causal=True, seed=0,
    )  # fmt: skip
    made_inputs = make_inputs(case, 0)
    q, k, v = made_inputs.q, made_inputs.k, made_inputs.v
    rows = torch.randperm(n, generator=torch.Generator().manual_seed(0))[:256]
    exact = build("vanilla", heads=HEADS, head_dim=DIM).naive(q, k, v, rows=rows)
    table = Table("method", "tables", "error", "kept mass", "pairs a query", title=f"text, n = {n:,}, 256 query rows")
    for name in ("bit_sampling", "simhash"):
        for tables in (1, 2, 4, 8):
            attention = build(name, heads=HEADS, head_dim=DIM, bits=8, window=128, tables=tables)
            assert isinstance(attention, BucketAttention)
            error = (attention.naive(q, k, v, rows=rows) - exact).norm() / exact.norm()
            mass = attention.kept_mass(q, k, rows=rows).mean()
            pairs = attention.comparisons(q, k).sum() / HEADS / n
            table.add_row(name, str(tables), f"{error:.3f}", f"{mass:.3f}", f"{pairs:.0f}")
    console.print(table)


def _kernel(q: Tensor, k: Tensor, v: Tensor, tables: list[Windows]) -> Callable[[], object]:
    """The window kernel alone, without hashing and sorting."""
    q, k, v = q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1)
    return torch.no_grad()(lambda: window_attention(q, k, v, tables, DIM**-0.5))


def _no_grad(attention: Attention, inputs: tuple[Tensor, ...]) -> Callable[[], object]:
    return torch.no_grad()(lambda: attention(*inputs))


def main() -> None:
    """Print the requested tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=count(64, 2**24), default=65_536, help="tokens")
    parser.add_argument("--rounds", type=count(), default=3)
    parser.add_argument("--accuracy", action="store_true", help="error and kept mass on text, at 16K")
    chosen = parser.parse_args()
    console = Console(width=110)
    if chosen.accuracy:
        accuracy(min(chosen.n, 16_384), console)
        return
    speed(chosen.n, chosen.rounds, console)
    backward(chosen.n, 1, console)
    memory(chosen.n, console)
    crossover(chosen.rounds, console)


if __name__ == "__main__":
    raise SystemExit(run_interruptible(main))
