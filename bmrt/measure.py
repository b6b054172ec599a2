"""Measures memory and time over context length, and the cost of compression, on a small random Llama.

    python -m bmrt.measure memory      # peak of cache and of the forward passes, 512 to 65,536 tokens
    python -m bmrt.measure growth      # how the time of a chunked prefill grows with its length, 512 to 65,536 tokens
    python -m bmrt.measure overhead    # time of a chunked prefill with and without compression, 16,384 tokens

Memory: the cache's own bytes at rest, and the peak of torch's allocations over all forward passes of a prompt
(`harness.measure.memory`), without the model. Time: process time on one thread, with all kinds of prefill in turn, as
medians; "plain" is transformers' own cache with the same chunks. `selecting` is the time inside `BoundedLayer.settle`,
the entire cost of compression. Growth: `harness.stats.scaling` fits a + c·n^α to these times.
"""

from __future__ import annotations

from attentions.common.stopping import exit_on_signal, run_interruptible

if __name__ == "__main__":
    exit_on_signal()  # before the slow imports

import argparse
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import product
from typing import Any

import torch
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from attentions.common.settings import require
from bmrt.cache.bounded_cache import BoundedCache
from bmrt.cache.layer import BoundedLayer
from bmrt.cache.settings import Settings
from bmrt.evaluation.options import run
from bmrt.strategies import STRATEGIES, Hybrid, Strategy, build_strategy
from harness.measure.elapsed import seconds_of
from harness.measure.memory import allocator_peak
from harness.stats.scaling import fit_scaling

LENGTHS = tuple(2**power for power in range(9, 17))


def main(arguments: list[str] | None = None) -> None:
    """Parse the arguments and run the command."""
    parser = argparse.ArgumentParser(
        prog="python -m bmrt.measure", description="Measure memory and time of a bounded cache."
    )
    parser.add_argument("what", choices=("memory", "growth", "overhead"), help="the quantity to measure")
    parser.add_argument("--budget", type=int, default=256, help="tokens kept per layer and head (default: 256)")
    parser.add_argument("--chunk", type=int, default=256, help="tokens per forward pass (default: 256)")
    parser.add_argument(
        "--strategies", nargs="+", default=["exact"], help=f"strategies to measure: hybrid, {', '.join(STRATEGIES)}"
    )
    parser.add_argument("--lengths", nargs="+", type=int, default=None, help="context lengths in tokens")
    parser.add_argument("--hidden", type=int, default=None, help="width of the model (default: 64; overhead: 512)")
    parser.add_argument("--plain_most", type=int, default=8192, help="growth: longest prompt for a plain cache")
    parser.add_argument("--rounds", type=int, default=3, help="repetitions of each measurement (default: 3)")
    run(lambda given: {"memory": memory, "growth": growth, "overhead": overhead}[given.what](given), parser, arguments)


def memory(given: argparse.Namespace) -> str:
    """Return a Markdown table of bytes by length; the last line gives the spread of the peaks."""
    model = small_model(given.hidden or 64)
    lines = [
        "| tokens | cache, KiB | peak of the forward passes, KiB | transformers' cache, KiB |",
        "|---:|---:|---:|---:|",
    ]
    peaks = []
    for length in given.lengths or LENGTHS:
        cache = BoundedCache(model, given.budget, strategy=strategy_of(given.strategies[0]))
        _, peak = allocator_peak(lambda cache=cache, length=length: prefill(model, cache, length, given.chunk))
        full = (
            2 * model.config.num_hidden_layers * length * model.config.num_key_value_heads * 4 * model.config.head_dim
        )
        peaks.append(peak)
        lines.append(f"| {length:,} | {cache.state_bytes / 1024:.0f} | {peak / 1024:.0f} | {full / 1024:.0f} |")
    lines.append(f"\npeak from {min(peaks) / 1024:.0f} to {max(peaks) / 1024:.0f} KiB: {spread(peaks):.1%} apart")
    return "\n".join(lines)


def growth(given: argparse.Namespace) -> str:
    """Return a Markdown table of time exponents by strategy at a fixed budget, and of the plain cache."""
    torch.set_num_threads(1)
    model, lengths = small_model(given.hidden or 64), given.lengths or LENGTHS
    require(given.plain_most >= min(lengths), "plain_most", given.plain_most, f"at least {min(lengths)}, a length")
    makers = caches(model, given)
    taken: dict[str, dict[int, list[list[float]]]] = {name: {} for name in makers}
    prefill(model, makers["plain"](), 2 * given.chunk, given.chunk)
    for _ in range(given.rounds):
        for length, (name, make) in product(lengths, makers.items()):
            if name != "plain" or length <= given.plain_most:
                sample, _ = timed(lambda make=make, length=length: prefill(model, make(), length, given.chunk))
                taken[name].setdefault(length, []).append([sample])
    lines = [
        "| cache | tokens | first, s | last, s | exponent | 95 % | law |",
        "|---|---:|---:|---:|---:|---:|---|",
    ]
    for name, samples in taken.items():
        fit = fit_scaling(samples)
        (low, high), law = fit.interval, f"{fit.model}, {fit.verdict}"
        times = " | ".join(f"{seconds:.3f}" for seconds in (fit.values[0], fit.values[-1]))
        span = f"{fit.sizes[0]:,} to {fit.sizes[-1]:,}"
        lines.append(f"| {name} | {span} | {times} | {fit.exponent:.3f} | {low:.3f}-{high:.3f} | {law} |")
    return "\n".join(lines)


def overhead(given: argparse.Namespace) -> str:
    """Return a Markdown table of seconds by strategy."""
    torch.set_num_threads(1)
    model, length = small_model(given.hidden or 512), (given.lengths or [16384])[0]
    lines = ["| cache | prefill, s | of plain | selecting, s | of plain |", "|---|---:|---:|---:|---:|"]
    makers = caches(model, given)
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in makers}
    prefill(model, makers["plain"](), 2 * given.chunk, given.chunk)
    for _ in range(given.rounds):
        for name, make in makers.items():
            taken[name].append(timed(lambda make=make: prefill(model, make(), length, given.chunk)))
    medians = {
        name: [statistics.median(column) for column in zip(*pairs, strict=True)] for name, pairs in taken.items()
    }
    plain = medians["plain"][0]
    for name, (whole, selecting) in medians.items():
        lines.append(f"| {name} | {whole:.2f} | {whole / plain:.1%} | {selecting:.3f} | {selecting / plain:.1%} |")
    return "\n".join(lines)


def caches(model: Any, given: argparse.Namespace) -> dict[str, Callable[[], Any]]:
    """Return cache factories: transformers' own as "plain", and a bounded one per strategy."""
    makers: dict[str, Callable[[], Any]] = {"plain": lambda: DynamicCache(config=model.config)}
    for name in given.strategies:
        makers[name] = lambda name=name: BoundedCache(model, given.budget, strategy=strategy_of(name))
    return makers


def small_model(hidden: int) -> Any:
    """Build a random Llama of two layers with heads of width 32 or less, and four query heads per key head.

    Raises ValueError for a width that its heads cannot divide.
    """
    torch.manual_seed(0)
    heads = max(4, hidden // 32)
    require(hidden % (2 * heads) == 0, "hidden", hidden, f"a multiple of {2 * heads}: {heads} heads of an even width")
    config = LlamaConfig(
        vocab_size=259,
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=2,
        num_attention_heads=heads,
        num_key_value_heads=max(1, heads // 4),
        head_dim=hidden // heads,
        max_position_embeddings=2**20,
        initializer_range=0.1,
    )
    return LlamaForCausalLM(config).eval().requires_grad_(False)


def prefill(model: Any, cache: Any, length: int, chunk: int) -> None:
    """Run random bytes through the decoder chunk by chunk, generated on the fly so that the prompt takes no memory."""
    draw = torch.Generator().manual_seed(length)
    with torch.inference_mode():
        for start in range(0, length, chunk):
            ids = torch.randint(256, (1, min(chunk, length - start)), generator=draw)
            model.base_model(ids, past_key_values=cache, use_cache=True)


def strategy_of(name: str) -> Strategy:
    """Build a strategy with its default settings; "hybrid" is half exact and half frequency_rank."""
    if name == "hybrid":
        return Hybrid(build_strategy("exact"), build_strategy("frequency_rank"), ratio=Settings.hybrid_ratio)
    return build_strategy(name)


def spread(values: list[int]) -> float:
    """Return the largest value over the smallest, minus one."""
    return max(values) / min(values) - 1


def timed(call: Callable[[], None]) -> tuple[float, float]:
    """Return the process seconds of a call, and the part spent on compression."""
    with _settling() as inside:
        return seconds_of(call, "processor"), sum(inside)


@contextmanager
def _settling() -> Iterator[list[float]]:
    """Record the process seconds of every `BoundedLayer.settle` call within the block."""
    usual, taken = BoundedLayer.settle, list[float]()

    def settle(self: BoundedLayer, *args: Any) -> None:
        taken.append(seconds_of(lambda: usual(self, *args), "processor"))

    BoundedLayer.settle = settle  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield taken
    finally:
        BoundedLayer.settle = usual


if __name__ == "__main__":
    raise SystemExit(run_interruptible(main))
