"""The long arena: what a model costs at 1K to 128K tokens with one attention or another, and what it learns with it.

    python -m lsh_v2.long_arena                                     # long_arena.yml: the guide's lengths and limits
    python -m lsh_v2.long_arena --set 'sequence_lengths=[1024, 4096]' --set 'tasks={}'
    python -m lsh_v2.long_arena --set checkpoint=data/results --set 'attentions=[flash]'

One line a case; each runs in a process of its own, with the limits of the configuration, and ends in a row of
`rows.jsonl`. From the rows: `report.html` and `report.md` (the harness's), `benchmark_summary.json` (`seq_len`,
`latency_ms`, `rss_mb`, `tokens_per_sec`, fitted exponents, accuracies) and its figure. The same command again measures
what is not there yet. Exit status: 0 done, 1 the disk is full, 2 unusable input and why, 130 interrupted; all rows so
far are kept.
"""

from __future__ import annotations

from attentions.stopping import exit_on_signal, run_interruptible

if __name__ == "__main__":
    exit_on_signal()  # before the imports that take long

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

# Every child of the fork server runs this module again before its own work, so it imports the rest when called.

KEPT = "every row so far is kept, and the same command goes on"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command with these arguments, by default the process's own; returns the exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser(prog="python -m lsh_v2.long_arena", description="Cost and accuracy over lengths.")
    parser.add_argument("config", nargs="?", type=Path, help="a YAML file (default: lsh_v2/long_arena.yml)")
    parser.add_argument("--set", action="append", default=[], metavar="a.b=c", help="replace a value")
    parsed = parser.parse_args(given)
    from lsh_v2.endings import UNUSABLE, end
    from lsh_v2.long_arena_config import FULL, load_arena_config
    from lsh_v2.long_arena_run import run

    try:
        config = load_arena_config(parsed.config or FULL, parsed.set)
    except ValueError as error:
        return _say(error, UNUSABLE)
    out = Path(config.out)
    try:
        run(config, shlex.join(["python", "-m", "lsh_v2.long_arena", *given]))
    except (Exception, KeyboardInterrupt) as error:
        return end(error, out, KEPT)
    print(out / "report.html")
    print(out / "benchmark_summary.json")
    return 0


def _say(message: object, code: int) -> int:
    print(message, file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(run_interruptible(main))
