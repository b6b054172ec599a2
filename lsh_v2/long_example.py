"""131,072 tokens through the 100M model: time, peak memory, and the logits of the last token.

    python -m lsh_v2.long_example                            # 131,072 tokens, the default attention
    python -m lsh_v2.long_example --tokens 16384 --set attention=flash

    parameters 99,999,817   tokens 131,072   seconds 431.3   peak 6.95 GB beyond the weights   steps 2.00   logits ...

Logits of all positions would be 131,072 × 32,000 × 4 bytes = 16.8 GB, so only the last position's are made. Every
other value that is as wide as the feed-forward layer exists for one chunk of the sequence alone.
"""

from __future__ import annotations

from attentions.stopping import exit_on_signal, run_interruptible

if __name__ == "__main__":
    exit_on_signal()  # before the imports that take long

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from harness.memory import resident_peak, return_freed_memory
from lsh_v2.endings import end
from lsh_v2.model import LSHv2Model
from lsh_v2.presets import model_of_command


def main(arguments: Sequence[str] | None = None) -> int:
    """Run once and print the figures; exit code 2 for settings that are not allowed."""
    parser = argparse.ArgumentParser(prog="python -m lsh_v2.long_example", description="A long sequence, measured.")
    parser.add_argument("--tokens", type=int, default=131_072, help="length of the sequence (default: 131072)")
    parser.add_argument("--size", default="100M", help="parameters of the model (default: 100M)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a key of the model")
    given = parser.parse_args(arguments)
    try:
        model = model_of_command(given.size, given.set)
        model.check(given.tokens)
        print(measure(model, given.tokens))
    except (Exception, KeyboardInterrupt) as error:
        return end(error, Path())
    return 0


@torch.no_grad()
def measure(model: LSHv2Model, tokens: int) -> str:
    """One line with the figures of one forward pass over random tokens."""
    ids = torch.randint(0, model.config.vocab_size, (1, tokens), generator=torch.Generator().manual_seed(0))
    model(ids[:, :64], logits_to_keep=1)  # builds native kernels, outside the clock
    return_freed_memory()
    started = time.perf_counter()
    out, peak = resident_peak(lambda: model(ids, logits_to_keep=1))
    time_s = time.perf_counter() - started
    finite = bool(torch.isfinite(out["logits"]).all())
    steps = f"   steps {float(out['expected_steps']):.2f}" if "expected_steps" in out else ""
    memory = "unknown" if peak is None else f"{peak / 1e9:.2f} GB beyond the weights"
    parameters = sum(p.numel() for p in model.parameters())
    return (
        f"parameters {parameters:,}   tokens {tokens:,}   seconds {time_s:.1f}   "
        f"peak {memory}{steps}   logits {tuple(out['logits'].shape)} {'finite' if finite else 'NOT FINITE'}"
    )


if __name__ == "__main__":
    sys.exit(run_interruptible(main))
