"""Mixes the three computational reasoning tasks in one stream, and writes or checks them as a file.

python -m tasks.synthetic examples.jsonl --count 1000 --seed 0   # write
python -m tasks.synthetic examples.jsonl --check                 # read back, and report a broken line
"""

from __future__ import annotations

from attentions.common.stopping import exit_on_signal, run_interruptible

if __name__ == "__main__":
    exit_on_signal()  # before the slow imports

import argparse
import itertools
from collections import Counter
from pathlib import Path

from tasks.example import Mixed
from tasks.fuzzy_regex import FuzzyRegex
from tasks.jsonl import read_examples, write_examples
from tasks.odd_one_out import OddOneOut
from tasks.set_data import SetData

MAX_EXAMPLES = 2**31 - 1  # maximum number of examples in a file


def computational_reasoning(*, quick: bool = False, seed: int = 0) -> Mixed:
    """Mix set of data, odd one out, and fuzzy regex in equal parts; `quick` can be learned in minutes of training.

    Quick: three to five integers of at most two digits with MOD_2 or MOD_5; five to seven numbers below 100, odd by
    parity, number of digits, or divisibility by 5; plain patterns on four to six words.
    """
    if not quick:
        return Mixed([SetData(seed=seed), OddOneOut(seed=seed), FuzzyRegex(seed=seed)], seed=seed)
    sets = SetData(items=(3, 5), functions=("MOD_2", "MOD_5"), kinds=("integer",), digits=2, seed=seed)
    odd = OddOneOut(items=(5, 7), keys=("parity", "multiple of 5", "digits"), highest=99, seed=seed)
    return Mixed([sets, odd, FuzzyRegex(words=(4, 6), parts=1, fuzzy=0.0, seed=seed)], seed=seed)


def main(arguments: list[str] | None = None) -> None:
    """Write or check a file of examples."""
    parser = argparse.ArgumentParser(
        prog="python -m tasks.synthetic", description="Write or read examples of computational reasoning."
    )
    parser.add_argument("file", type=Path, help="a .jsonl file")
    parser.add_argument("--count", type=int, default=1000, help="number of examples to write (default: 1000)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the examples (default: 0)")
    parser.add_argument(
        "--quick", action="store_true", help="use the easy settings, which a few minutes of training suffice to learn"
    )
    parser.add_argument("--check", action="store_true", help="read the file and count its tasks instead of writing it")
    given = parser.parse_args(arguments)
    if not 1 <= given.count <= MAX_EXAMPLES:
        parser.error(f"argument --count: {given.count} is not an integer from 1 to {MAX_EXAMPLES}")
    try:
        if not given.check:
            stream = computational_reasoning(quick=given.quick, seed=given.seed).stream()
            write_examples(given.file, itertools.islice(stream, given.count))
        found = Counter(str(example.metadata.get("task", "unnamed")) for example in read_examples(given.file))
    except ValueError as error:
        parser.exit(2, f"{error}\n")
    print(f"{found.total()} examples in {given.file}: " + ", ".join(f"{n} {task}" for task, n in sorted(found.items())))


if __name__ == "__main__":
    raise SystemExit(run_interruptible(main))
