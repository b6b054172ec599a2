"""Check attentions against the contract.

    python -m attentions.contract my_package.my_module:MyAttention

Prints one line per check and what is wrong; `--all` checks every backend, `--device cuda` runs on a GPU.
"""

from __future__ import annotations

from attentions.common.stopping import exit_on_signal, run_interruptible

if __name__ == "__main__":
    exit_on_signal()  # before the slow imports

import argparse
import sys

import torch

from attentions.common.commands import program_name
from attentions.contract.candidate import Candidate
from attentions.contract.checks import outcomes


def main(arguments: list[str] | None = None) -> int:
    """Command line: exit 0 if every check holds, 1 if one fails, 2 if a class or device is not available."""
    from attentions import BACKENDS, resolve

    parser = argparse.ArgumentParser(
        prog=program_name("attentions.contract"), description="Check attentions against the contract."
    )
    parser.add_argument("backends", nargs="*", metavar="backend", help="a name in BACKENDS or package.module:Class")
    parser.add_argument("--all", action="store_true", help="every backend in BACKENDS")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, mps")
    parser.add_argument("--quiet", action="store_true", help="print only failures and a count")
    chosen = parser.parse_args(arguments)
    names = list(BACKENDS) if chosen.all else chosen.backends
    if not names:
        parser.error("give a backend or --all")
    try:
        backends = {name: resolve(name) for name in names}
    except ValueError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2
    device = chosen.device
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch raises AssertionError if it was built without CUDA
        print(f"{parser.prog}: --device {device}: {error}", file=sys.stderr)
        return 2
    failures = 0
    for name, backend in backends.items():
        for causal in (True, False):
            found = outcomes(Candidate(backend, {"causal": causal}, device))
            failed = [outcome for outcome in found.values() if outcome.startswith("FAILS")]
            failures += len(failed)
            print(f"{name}, {'causal' if causal else 'not causal'}: {len(failed)} of {len(found)} checks failed")
            for check, outcome in found.items():
                if not chosen.quiet or outcome in failed:
                    print(f"  {check:32} {outcome}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(run_interruptible(main))
