"""Measures what a model costs at 1K to 128K tokens with each attention, and what it learns with it.

    python -m lsh_v2.long_arena                                     # long_arena.yml: the guide's lengths and limits
    python -m lsh_v2.long_arena --set 'sequence_lengths=[1024, 4096]' --set 'tasks={}'
    python -m lsh_v2.long_arena --set checkpoint=data/results --set 'attentions=[flash]'

Each case runs in its own process under the limits of the configuration, prints one line, and adds one row to
`rows.jsonl`. The rows produce `report.html` and `report.md` (the harness's report), `benchmark_summary.json`
(`seq_len`, `latency_ms`, `rss_mb`, `tokens_per_sec`, fitted exponents, accuracies), and its figure. Running the same
command again measures only what is missing. Exit status: 0 done, 1 disk full, 2 unusable input (with the reason), 130
interrupted. All rows written so far are kept.
"""

from __future__ import annotations

from attentions.common.stopping import exit_on_signal, run_interruptible

if __name__ == "__main__":
    exit_on_signal()  # before the slow imports

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

# Every child of the fork server imports this module before its own work, so slow imports are inside `main`.

KEPT = "every row so far is kept, and the same command continues"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command with these arguments (default: `sys.argv`); returns the exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser(
        prog="python -m lsh_v2.long_arena", description="Measure cost and accuracy over lengths."
    )
    parser.add_argument("config", nargs="?", type=Path, help="a YAML file (default: lsh_v2/long_arena.yml)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="a.b=c", help="override a value of the configuration"
    )
    parsed = parser.parse_args(given)
    from lsh_v2.arena.config import FULL, load_arena_config
    from lsh_v2.arena.run import run
    from lsh_v2.common.endings import UNUSABLE, end

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
