"""Compare vector quantisation and HyperAttention with flash, as ratios from one run; batch 1, 4 heads of 64, float32.

    python -m benchmarks.vq_and_hyper                  the whole table, about four minutes on two cores
    python -m benchmarks.vq_and_hyper --n 16384        quicker, shorter
    python -m benchmarks.vq_and_hyper --exponents      growth from 4K to 256K tokens instead, without flash

Methods take turns; each figure is a median over `--rounds`. Codebooks are learned by k-means on other Gaussian inputs.
"Without codes" excludes finding the nearest codewords, as published tables do. Memory is the resident peak beyond
inputs and output, relative to the bytes of q, k, v and out.
"""

from __future__ import annotations

from attentions.common.stopping import exit_on_signal, run_interruptible

if __name__ == "__main__":
    exit_on_signal()  # before the slow imports

import argparse
from collections.abc import Callable

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from attentions import Attention, build
from attentions.codebooks.quantised import QuantisedAttention
from benchmarks.side_by_side import gaussian, medians
from harness.common.command_line import count
from harness.measure.elapsed import seconds_of
from harness.measure.memory import resident_peak, return_freed_memory
from harness.stats.scaling import fit_scaling

HEADS, DIM = 4, 64
CALIBRATION = 16_384  # tokens
HYPER: dict[str, object] = {"block_size": 256, "sample_size": 256, "min_seq_len": 1024}
# Label -> backend, settings, and the target speed-up over flash with the same mask.
METHODS: dict[str, tuple[str, dict[str, object], float]] = {
    "vq causal, 512 codes": ("vq", {"codes": 512, "causal": True}, 15),
    "vq full, 512 codes": ("vq", {"codes": 512, "causal": False}, 0),
    "vq_qk causal, 128 codes": ("vq_qk", {"codes": 128, "causal": True}, 15),
    "vq_qk full, 128 codes": ("vq_qk", {"codes": 128, "causal": False}, 100),
    "hyper causal": ("hyper", {**HYPER, "causal": True}, 6),
    "hyper full": ("hyper", {**HYPER, "causal": False}, 50),
}


def made(label: str, *, heads: int = HEADS, head_dim: int = DIM) -> Attention:
    """Build one of `METHODS` in eval mode, with its codebooks learned."""
    backend, settings, _ = METHODS[label]
    attention = build(backend, heads=heads, head_dim=head_dim, **settings).eval()
    attention.prepare(*gaussian(CALIBRATION, heads=heads, head_dim=head_dim, seed=1))
    return attention


def without_codes(attention: QuantisedAttention, inputs: tuple[Tensor, Tensor, Tensor]) -> Callable[[], object]:
    """Return the attention's call on these inputs with all codes computed beforehand."""
    fixed = build_like(attention)
    keys = attention.codes_of(inputs[1], attention.key_book)
    queries = attention.codes_of(inputs[0], getattr(attention, "query_book", attention.key_book))
    fixed.codes_of = lambda x, book: keys if book is fixed.key_book else queries
    return no_grad(fixed, inputs)


def build_like(attention: QuantisedAttention) -> QuantisedAttention:
    """Build another attention with the same settings and codebooks."""
    other = type(attention)(
        attention.heads, attention.head_dim, codes=attention.codes, block=attention.block_size, causal=attention.causal
    )
    other.load_state_dict(attention.state_dict())
    return other.eval()


def no_grad(attention: Attention, inputs: tuple[Tensor, ...]) -> Callable[[], object]:
    return torch.no_grad()(lambda: attention(*inputs))


def speed(n: int, rounds: int, console: Console) -> None:
    """Print seconds and ratios to flash with the same mask, with and without finding codes, and memory."""
    inputs = gaussian(n)
    methods = {label: made(label) for label in METHODS}
    calls: dict[str, Callable[[], object]] = {label: no_grad(a, inputs) for label, a in methods.items()}
    calls |= {
        f"{x}: codes known": without_codes(a, inputs) for x, a in methods.items() if isinstance(a, QuantisedAttention)
    }
    for name, causal in (("flash causal", True), ("flash full", False)):
        calls[name] = no_grad(build("flash", heads=HEADS, head_dim=DIM, causal=causal), inputs)
    found = medians(calls, rounds=rounds)
    columns = "method", "seconds", "flash / it", "aim", "without codes", "flash / that", "memory"
    table = Table(*columns, title=f"forward, n = {n:,}")
    for label, attention in methods.items():
        flash = found["flash causal" if attention.causal else "flash full"]
        known = found.get(f"{label}: codes known")
        rest = ("", "") if known is None else (f"{known:.3f}", f"{flash / known:.0f}")
        aim = f"{METHODS[label][2]:.0f}" if METHODS[label][2] else ""
        memory = f"{memory_share(attention, inputs):.2f}"
        table.add_row(label, f"{found[label]:.3f}", f"{flash / found[label]:.1f}", aim, *rest, memory)
    console.print(table, f"flash: causal {found['flash causal']:.2f} s, full {found['flash full']:.2f} s")


def memory_share(attention: Attention, inputs: tuple[Tensor, ...]) -> float:
    """Resident peak of a call beyond inputs and output, relative to the bytes of q, k, v and out."""
    with torch.no_grad():
        attention(*(x[:, :, :256] for x in inputs))
        return_freed_memory()
        out, peak = resident_peak(lambda: attention(*inputs))
    return float("nan") if peak is None else (peak - out.nbytes) / sum(x.nbytes for x in (*inputs, out))


def exponents(lengths: list[int], rounds: int, console: Console) -> None:
    """Print the growth of time with length, with its interval."""
    table = Table("method", *(f"{n // 1024}K" for n in lengths), "exponent", title="seconds, median")
    for label in METHODS:
        attention = made(label)
        samples = {n: [[seconds(attention, n)] for _ in range(rounds + 1)][1:] for n in lengths}
        fit = fit_scaling(samples)
        times = (f"{sorted(x[0] for x in found)[len(found) // 2]:.3f}" for found in samples.values())
        table.add_row(label, *times, f"{fit.exponent:.2f} ({fit.interval[0]:.2f} to {fit.interval[1]:.2f})")
    console.print(table)


def seconds(attention: Attention, n: int) -> float:
    """Return the seconds of one call."""
    return seconds_of(no_grad(attention, gaussian(n)))


def main() -> None:
    """Print the requested tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=count(64, 2**24), default=65_536, help="tokens")
    parser.add_argument("--rounds", type=count(), default=1)
    parser.add_argument("--exponents", action="store_true", help="growth of time from 4K to 256K")
    chosen = parser.parse_args()
    console = Console(width=110)
    if chosen.exponents:
        exponents([2**power for power in range(12, 19)], max(3, chosen.rounds), console)
    else:
        speed(chosen.n, chosen.rounds, console)


if __name__ == "__main__":
    raise SystemExit(run_interruptible(main))
