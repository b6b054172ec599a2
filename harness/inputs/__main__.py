"""Print how uneven attention is on each kind of inputs, as the Markdown table of README.md.

    python -m harness.inputs
    python -m harness.inputs --lengths 1024 4096 --inputs text text:corpus.txt qkv.safetensors

Computes exact causal attention in float64 on 128 query rows of the later half, for 4 heads of dimension 64, seed 0. For
`text`, even heads are sharp and odd heads diffuse; each group has its own line.
"""

from __future__ import annotations

from attentions.common.stopping import exit_on_signal, run_interruptible

if __name__ == "__main__":
    exit_on_signal()  # before the slow imports

import argparse
import sys
from collections.abc import Iterator, Sequence
from statistics import mean

from attentions.common.commands import program_name
from harness.common.command_line import count
from harness.common.rows import Case
from harness.inputs.diagnostics import diagnose
from harness.inputs.make import make_inputs

ROWS = 128
HEADER = """\
| inputs | heads | n | entropy, nats | maximum, nats | weight on the top 1 % of keys |
|---|---|---|---|---|---|"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; return 2 if the inputs cannot be made."""
    parser = argparse.ArgumentParser(
        prog=program_name("harness.inputs"), description="How uneven attention is on each kind of inputs"
    )
    parser.add_argument("--inputs", nargs="+", default=["gaussian", "planted", "text"], help="names as in conf.yml")
    parser.add_argument(
        "--lengths", nargs="+", type=count(2, 2**24), default=[1024, 4096, 16384, 65536], help="in tokens"
    )
    chosen = parser.parse_args(arguments)
    print(HEADER)
    try:
        for inputs in chosen.inputs:
            for n in chosen.lengths:
                print("\n".join(lines(inputs, n)), flush=True)
    except ValueError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2
    return 0


def lines(inputs: str, n: int) -> Iterator[str]:
    """Yield the lines of the table for one kind and length."""
    found = diagnose(make_inputs(sample_case(inputs, n), 0), causal=True, rows=ROWS)
    sorts = (
        {"sharp": slice(0, None, 2), "diffuse": slice(1, None, 2)}
        if inputs.startswith("text")
        else {"all": slice(None)}
    )
    for sort, heads in sorts.items():
        nats, mass = mean(found.entropy_nats[heads]), mean(found.top_mass[heads])
        yield f"| {inputs} | {sort} | {n} | {nats:.2f} | {found.uniform_nats:.2f} | {mass:.2f} |"


def sample_case(inputs: str, n: int) -> Case:
    """Return the case whose inputs are measured: 4 heads of dimension 64, float32."""
    return Case(
        subject="attention",
        backend="vanilla",
        label="vanilla",
        settings={},
        level="kernel",
        mode="forward",
        inputs=inputs,
        n=n,
        batch=1,
        heads=4,
        kv_heads=4,
        head_dim=64,
        value_dim=64,
        dtype="float32",
        device="cpu",
        threads=1,
        causal=True,
        seed=0,
    )


if __name__ == "__main__":
    sys.exit(run_interruptible(main))
