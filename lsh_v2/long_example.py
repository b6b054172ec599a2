"""Runs 131,072 tokens through the 100M model and reports time, peak memory, and the logits of the last token.

    python -m lsh_v2.long_example                            # 131,072 tokens, the default attention
    python -m lsh_v2.long_example --tokens 16384 --set attention=flash

    parameters 99,999,817   tokens 131,072   seconds 431.3   peak 6.95 GB beyond the weights   steps 2.00   logits ...

The logits of all positions would be 131,072 × 32,000 × 4 bytes = 16.8 GB, so only the last position's are computed.
Other tensors as wide as the feed-forward layer are computed one chunk of the sequence at a time.
"""

from __future__ import annotations

from attentions.common.stopping import exit_on_signal, run_interruptible

if __name__ == "__main__":
    exit_on_signal()  # before the slow imports

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from harness.measure.elapsed import Elapsed
from harness.measure.memory import resident_peak, return_freed_memory
from lsh_v2.common.endings import end
from lsh_v2.model.presets import model_of_command

if TYPE_CHECKING:
    from lsh_v2.model.language_model import LSHv2Model


def main(arguments: Sequence[str] | None = None) -> int:
    """Run once and print the figures; the exit status is 2 for invalid settings."""
    parser = argparse.ArgumentParser(prog="python -m lsh_v2.long_example", description="Measure one long sequence.")
    parser.add_argument("--tokens", type=int, default=131_072, help="length of the sequence (default: 131072)")
    parser.add_argument("--size", default="100M", help="parameters of the model (default: 100M)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a key of the model")
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
    """Run one forward pass over random tokens; returns one line of figures."""
    ids = torch.randint(0, model.config.vocab_size, (1, tokens), generator=torch.Generator().manual_seed(0))
    model(ids[:, :64], logits_to_keep=1)  # builds native kernels before timing
    return_freed_memory()
    elapsed = Elapsed()
    out, peak = resident_peak(lambda: model(ids, logits_to_keep=1))
    time_s = elapsed.seconds()
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
