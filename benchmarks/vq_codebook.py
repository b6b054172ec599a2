"""Time quantised attention by codebook size and by length, with and without finding codes; 1 sequence, 1 head.

    python -m benchmarks.vq_codebook                   256 to 8192 codes at 16,384 tokens, width 512
    python -m benchmarks.vq_codebook --lengths         1024 to 65,536 tokens, width 1024, 128 codes: also the layer
    python -m benchmarks.vq_codebook --lengths --dim 512 --n 262144

Milliseconds, float32, median over `--rounds`; methods take turns. Published tables of such attention exclude finding
the nearest codewords, so both are shown. Causal unless it says full. Every output is checked to be finite.
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

from attentions import build
from attentions.codebooks.quantised import QuantisedAttention
from benchmarks.side_by_side import gaussian, medians
from benchmarks.vq_and_hyper import no_grad, without_codes
from harness.common.command_line import count
from transformer_vq.nn.attn_vq import VQAttentionQK
from transformer_vq.nn.config_spec import TransformerConfig

CODEBOOKS = (256, 512, 1024, 2048, 4096, 8192)
LENGTHS = tuple(1024 * 2**i for i in range(9))  # up to 65,536 unless --n is larger
COMPARED = 16_384  # tokens; flash and hyper are skipped at longer lengths, where they take minutes
BLOCK = 32


def quantised(name: str, dim: int, codes: int, *, causal: bool = True) -> QuantisedAttention:
    """Build one head with Gaussian codebooks, whose contents do not affect the time."""
    attention = build(name, heads=1, head_dim=dim, codes=codes, causal=causal)
    assert isinstance(attention, QuantisedAttention)
    return attention.eval()


def pair(
    attention: QuantisedAttention, inputs: tuple[Tensor, Tensor, Tensor], label: str
) -> dict[str, Callable[[], object]]:
    """Return the attention's call with codes found and with codes known, after checking its output."""
    with torch.no_grad():
        assert torch.isfinite(attention(*inputs)).all(), f"{label}: NaN or infinite values"
    return {label: no_grad(attention, inputs), f"{label}, codes known": without_codes(attention, inputs)}


def others(dim: int, inputs: tuple[Tensor, Tensor, Tensor]) -> dict[str, Callable[[], object]]:
    """Return flash and HyperAttention on the same inputs."""
    settings = {"flash": {}, "hyper": {"min_seq_len": 1024}}
    return {x: no_grad(build(x, heads=1, head_dim=dim, **settings[x]).eval(), inputs) for x in settings}


def by_codes(n: int, dim: int, rounds: int, console: Console) -> None:
    """Print a row per codebook size."""
    inputs = gaussian(n, heads=1, head_dim=dim)
    calls = others(dim, inputs)
    for codes in CODEBOOKS:
        for name in ("vq", "vq_qk"):
            calls |= pair(quantised(name, dim, codes), inputs, f"{name} {codes}")
    found = medians(calls, rounds=rounds)
    columns = "codes", "vq", "vq, codes known", "vq_qk", "vq_qk, codes known", "flash", "hyper"
    table = Table(*columns, title=f"milliseconds, n = {n:,}, width {dim}")
    for codes in CODEBOOKS:
        names = [f"{name} {codes}{known}" for name in ("vq", "vq_qk") for known in ("", ", codes known")]
        table.add_row(str(codes), *(f"{1e3 * found[x]:.1f}" for x in (*names, "flash", "hyper")))
    console.print(table)


def by_length(lengths: tuple[int, ...], dim: int, codes: int, rounds: int, console: Console) -> None:
    """Print a row per length: quantised queries and keys, causal and full, and the whole layer."""
    torch.manual_seed(0)
    layer = VQAttentionQK(TransformerConfig(d_model=dim, n_head=1, n_code=codes, block_len=BLOCK)).eval()
    labels = "causal", "causal, codes known", "full", "full, codes known", "flash", "hyper", "layer, causal"
    table = Table("tokens", *labels, title=f"vq_qk, milliseconds, width {dim}, {codes} codes")
    for n in lengths:
        inputs = gaussian(n, heads=1, head_dim=dim)
        calls = pair(quantised("vq_qk", dim, codes), inputs, "causal")
        calls |= pair(quantised("vq_qk", dim, codes, causal=False), inputs, "full")
        calls |= others(dim, inputs) if n <= COMPARED else {}
        x = inputs[0][:, 0]
        with torch.no_grad():
            assert torch.isfinite(layer(x)).all(), "the layer gives NaN or infinite values"
        calls["layer, causal"] = torch.no_grad()(lambda x=x: layer(x))
        found = medians(calls, rounds=rounds)
        table.add_row(f"{n:,}", *(f"{1e3 * found[label]:.1f}" if label in found else "" for label in labels))
    console.print(table)


def main() -> None:
    """Print the requested table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", action="store_true", help="lengths instead of sizes of the codebook")
    parser.add_argument(
        "--n", type=count(64, 2**24), help="tokens (default 16,384), or the longest length (default 65,536)"
    )
    parser.add_argument("--dim", type=count(1, 2**16), help="width of the head; default 512, with --lengths 1024")
    parser.add_argument("--rounds", type=count(), default=3)
    chosen = parser.parse_args()
    console = Console(width=110)
    if chosen.lengths:
        lengths = tuple(n for n in LENGTHS if n <= max(chosen.n or 65_536, LENGTHS[0]))
        by_length(lengths, chosen.dim or 1024, 128, chosen.rounds, console)
    else:
        by_codes(chosen.n or 16_384, chosen.dim or 512, chosen.rounds, console)


if __name__ == "__main__":
    raise SystemExit(run_interruptible(main))
