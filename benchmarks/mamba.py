"""Compare Mamba and Mamba-2 with flash and mambapy, as ratios from one run; batch 1, float32, causal.

    python -m benchmarks.mamba                    the whole table, about two minutes on two cores
    python -m benchmarks.mamba --n 16384          quicker, shorter

    what                                                             it   other  figure      aim
    MambaBlock against mambapy, forward, n = 65,536             0.816 s  16.05 s  19.7 x  >= 10 x

Blocks have width 256, kernels 4 heads of 64. Methods take turns; each time is a median over `--rounds`. Memory is the
resident peak beyond inputs and output, relative to the bytes of both. `mambapy` is included if it is installed.
"""

from __future__ import annotations

from attentions.common.stopping import exit_on_signal, run_interruptible

if __name__ == "__main__":
    exit_on_signal()  # before the slow imports

import argparse
import importlib
import importlib.util
from collections.abc import Callable

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from attentions import Attention, build
from attentions.recurrent.mamba2_block import Mamba2Block
from attentions.recurrent.mamba_block import MambaBlock
from benchmarks.side_by_side import gaussian, medians
from harness.common.command_line import count
from harness.measure.memory import resident_peak, return_freed_memory

WIDTH, HEADS, DIM = 256, 4, 64


def peer() -> nn.Module | None:
    """Return mambapy's block of the same width, or None if it is not installed."""
    if importlib.util.find_spec("mambapy") is None:
        return None
    mamba = importlib.import_module("mambapy.mamba")
    return mamba.MambaBlock(mamba.MambaConfig(d_model=WIDTH, n_layers=1))


def blocks(n: int, rounds: int, table: Table) -> None:
    """Compare both blocks with mambapy's Mamba-1: forward at n tokens, forward and backward at n / 4."""
    theirs = peer()
    for length, call, aim, what in ((n, _forward, 10, "forward"), (n // 4, _training, 5, "forward and backward")):
        x = torch.randn(1, length, WIDTH, generator=torch.Generator().manual_seed(0))
        calls = {"mamba": call(MambaBlock(WIDTH), x), "mamba2": call(Mamba2Block(WIDTH), x)}
        if theirs is not None:
            calls["mambapy"] = call(theirs, x)
        found = medians(calls, rounds=rounds)
        for name, title, wanted in (("mamba", "MambaBlock", f">= {aim} x"), ("mamba2", "Mamba2Block", "")):
            other = found.get("mambapy")
            _ratio(table, f"{title} against mambapy, {what}, n = {length:,}", found[name], other, wanted)


def kernels(n: int, rounds: int, table: Table) -> None:
    """Compare both kernels with flash, forward."""
    inputs = gaussian(n)
    calls = {name: _forward(_kernel(name), *inputs) for name in ("flash", "mamba", "mamba2")}
    found = medians(calls, rounds=rounds)
    for name, wanted in (("mamba2", ">= 30 x"), ("mamba", ">= 35 x")):
        _ratio(table, f"{name} against flash, forward, n = {n:,}", found[name], found["flash"], wanted)


def memory(n: int, table: Table) -> None:
    """Resident peak of the kernels beyond inputs and output, relative to the bytes of q, k, v and out."""
    inputs = gaussian(n)
    for name in ("mamba", "mamba2"):
        attention = _kernel(name)
        with torch.no_grad():
            attention(*(x[:, :, :256] for x in inputs))
            return_freed_memory()
            out, peak = resident_peak(lambda attention=attention: attention(*inputs))
        if peak is not None:
            tensors = sum(x.nbytes for x in (*inputs, out))
            beyond = peak - out.nbytes
            cells = (f"{beyond / 2**20:.0f} MiB", f"{tensors / 2**20:.0f} MiB", f"{beyond / tensors:.2f} x", "<= 3 x")
            table.add_row(f"{name}, memory beyond inputs and output, n = {n:,}", *cells)


def linearity(n: int, table: Table) -> None:
    """One head at 16 times the length: time and memory, each relative to those at n."""
    for name in ("mamba", "mamba2"):
        attention = build(name, heads=1, head_dim=DIM).eval()
        seconds, beyond = [], []
        for length in (n, 16 * n):
            inputs = gaussian(length, heads=1)
            call = _forward(attention, *inputs)
            seconds.append(medians({"": call}, rounds=3)[""])
            return_freed_memory()
            out, peak = resident_peak(lambda call=call: call())
            assert torch.isfinite(out).all()
            beyond.append(None if peak is None else peak - out.nbytes)
        what = f"{name}, 1 head, n = {16 * n:,} against {n:,}"
        cells = (f"{seconds[1]:.3f} s", f"{seconds[0]:.3f} s", f"{seconds[1] / seconds[0]:.1f} x", "16 x")
        table.add_row(f"{what}: time", *cells)
        if beyond[0] is not None and beyond[1] is not None:
            cells = (*(f"{x / 2**20:.0f} MiB" for x in reversed(beyond)), f"{beyond[1] / beyond[0]:.1f} x", "16 x")
            table.add_row(f"{what}: memory", *cells)


def decoding(n: int, steps: int, table: Table) -> None:
    """Compare one token after n tokens with one after 1,024; the streams take turns for `steps` rounds."""
    inputs = gaussian(n)
    token = [x[:, :, :1] for x in inputs]
    for name in ("mamba", "mamba2"):
        streams = {}
        for length in (1024, n):
            streams[length] = _kernel(name).stream(1)
            assert streams[length] is not None
            with torch.no_grad():
                streams[length].extend(*(x[:, :, :length] for x in inputs))
        calls = {str(at): torch.no_grad()(lambda s=stream: s.extend(*token)) for at, stream in streams.items()}
        found = medians(calls, rounds=steps)
        early, late = found["1024"], found[str(n)]
        cells = (f"{1e6 * late:.0f} us", f"{1e6 * early:.0f} us", f"{late / early:.2f} x", "0.90 to 1.10 x")
        table.add_row(f"{name}, one token after {n:,} against after 1,024", *cells)


def _kernel(name: str) -> Attention:
    return build(name, heads=HEADS, head_dim=DIM).eval()


def _forward(module: nn.Module, *inputs: Tensor) -> Callable[[], Tensor]:
    return torch.no_grad()(lambda: module(*inputs))


def _training(module: nn.Module, x: Tensor) -> Callable[[], object]:
    """Forward, and the gradients of the input and of every weight."""
    leaf = x.clone().requires_grad_()
    leaves = [leaf, *module.parameters()]
    return lambda: torch.autograd.grad(module(leaf).sum(), leaves)


def _ratio(table: Table, what: str, seconds: float, other: float | None, wanted: str) -> None:
    if other is None:
        table.add_row(what, f"{seconds:.3f} s", "", "mambapy is not installed", wanted)
    else:
        table.add_row(what, f"{seconds:.3f} s", f"{other:.2f} s", f"{other / seconds:.1f} x", wanted)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=count(64, 2**24), default=65_536, help="tokens; training takes a quarter of them")
    parser.add_argument("--rounds", type=count(), default=3)
    chosen = parser.parse_args()
    table = Table("what", "it", "other", "figure", "aim", title=f"{torch.get_num_threads()} threads, float32")
    blocks(chosen.n, chosen.rounds, table)
    kernels(chosen.n, chosen.rounds, table)
    memory(chosen.n, table)
    linearity(chosen.n, table)
    decoding(chosen.n, 300 * chosen.rounds, table)
    Console(width=140).print(table)


if __name__ == "__main__":
    raise SystemExit(run_interruptible(main))
