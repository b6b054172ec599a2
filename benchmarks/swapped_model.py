"""Measure the cost of swapping a model's attention: `flash` swapped in against the model's own fused attention.

    python -m benchmarks.swapped_model                     both stored models at 2,048 tokens

Measures forward calls without a cache. The two take turns, so that each pair runs under the same conditions. Prints
medians, the ratio of medians, and the median and quartiles of the ratios of pairs.
"""

from __future__ import annotations

from attentions.common.stopping import exit_on_signal, run_interruptible

if __name__ == "__main__":
    exit_on_signal()  # before the slow imports

import argparse

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from harness.common.command_line import count
from harness.measure.elapsed import seconds_of
from lsh_bitnet import attend_with, load_model

MODELS = ("tiny-bitnet", "written-induction")


def pairs(name: str, n: int, count: int) -> np.ndarray:
    """Return seconds (count, 2) of the model's own attention and of `flash` swapped in, measured in turns."""
    model = load_model(name).model
    ids = torch.randint(256, (1, n), generator=torch.Generator().manual_seed(0))

    def call() -> object:
        return model(ids, use_cache=False)

    found = []
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):  # so that neither compiles its quantiser
        call()
        for _ in range(count):
            own = seconds_of(call)
            with attend_with(model, "flash"):
                found.append((own, seconds_of(call)))
    return np.array(found)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=count(64, 2**24), default=2048, help="tokens")
    parser.add_argument("--pairs", type=count(), default=40, help="number of pairs of calls")
    given = parser.parse_args()
    table = Table("model", "own, ms", "swapped, ms", "more", "pairs, median", "quartiles", title=f"n = {given.n:,}")
    for name in MODELS:
        found = pairs(name, given.n, given.pairs)
        own, swapped = 1e3 * np.median(found, axis=0)
        low, middle, high = np.quantile(found[:, 1] / found[:, 0], (0.25, 0.5, 0.75)) - 1
        quartiles = f"{low:+.1%} to {high:+.1%}"
        table.add_row(name, f"{own:.1f}", f"{swapped:.1f}", f"{swapped / own - 1:+.1%}", f"{middle:+.1%}", quartiles)
    Console(width=110).print(table)


if __name__ == "__main__":
    raise SystemExit(run_interruptible(main))
