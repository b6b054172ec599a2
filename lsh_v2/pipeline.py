"""Everything in one command: model and data checked, training, profile, long arena, and what came of it.

    python -m lsh_v2.pipeline --quick          # small model, short sequences: minutes on two cores
    python -m lsh_v2.pipeline                  # the guide's full settings: hours on a GPU
    python -m lsh_v2.pipeline --test-only      # model and data alone
    python -m lsh_v2.pipeline --no-training    # benchmark what was trained before
    python -m lsh_v2.pipeline --no-benchmark

A phase that has finished leaves an OK marker (`data/results/*.ok`), void once its settings, inputs, source or results
are other ones, and the same command goes on with the first phase that has none; `--force` begins anew. Each phase runs
as a command of its own, whose output goes to the screen and to `data/results/*.log`.
`final_results/pipeline_results.json` says what ran, and which of the guide's success flags the measurements bear out,
each with its figure. Exit status: 0 all phases done, 1 one failed (its traceback is printed), 2 unusable input, 130
interrupted.
"""

from __future__ import annotations

from attentions.stopping import exit_on_signal, run_interruptible

if __name__ == "__main__":
    exit_on_signal()  # before the imports that take long

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from harness.run_folder import require_folder
from lsh_v2.long_arena_config import load_arena_config
from lsh_v2.pipeline_flags import flags_of, shown
from lsh_v2.pipeline_phases import Layout, config_of, phases_of
from lsh_v2.pipeline_run import PhaseFailed, run_phases, write_results
from lsh_v2.training import checks, load_training_config

FAILED, UNUSABLE, INTERRUPTED = 1, 2, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command with these arguments, by default the process's own; returns the exit status."""
    given = _parse(arguments)
    layout = Layout(given.root, quick=given.quick)
    training, benchmark = not (given.no_training or given.test_only), not (given.no_benchmark or given.test_only)
    status = 0
    try:
        require_possible(layout, training=training, benchmark=benchmark, force=given.force)
        wanted = phases_of(layout, training=training, benchmark=benchmark)
        records = run_phases(wanted, layout, force=given.force)
    except PhaseFailed as failure:
        print(f"\n{failure}", file=sys.stderr)
        records, status = failure.records, FAILED
    except ValueError as error:
        print(error, file=sys.stderr)
        return UNUSABLE
    except KeyboardInterrupt:
        print("interrupted; the same command goes on with this phase", file=sys.stderr)
        return INTERRUPTED
    try:
        flags = flags_of(layout)
        path = write_results(layout, records, flags)
    except ValueError as error:
        print(error, file=sys.stderr)
        return status or UNUSABLE
    print(f"\nsuccess flags\n{shown(flags)}\n{path}")
    return status


def require_possible(layout: Layout, *, training: bool, benchmark: bool, force: bool) -> None:
    """Raise ValueError for folders, configurations and earlier results that would stop the pipeline later on."""
    for folder in (layout.results, layout.manifest.parent):
        require_folder(folder, "--root")
    checks.require_possible(load_training_config(config_of(layout, "train"), [f"out={layout.training}"]))
    if benchmark:
        load_arena_config(config_of(layout, "long_arena"))
    phases = phases_of(layout, training=training, benchmark=benchmark) if force else []
    flags_of(layout, without={path for phase in phases for path in phase.makes})  # which are removed first


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m lsh_v2.pipeline", description="Train, measure and judge LSH v2.")
    parser.add_argument("--quick", action="store_true", help="short sequences and a small model")
    parser.add_argument("--no-training", action="store_true", help="leave out training and profile")
    parser.add_argument("--no-benchmark", action="store_true", help="leave out the long arena")
    parser.add_argument("--test-only", action="store_true", help="model and data alone")
    parser.add_argument("--force", action="store_true", help="remove the results of these phases and begin anew")
    parser.add_argument("--root", type=Path, default=Path(), help="folder of data/ and final_results/ (default: here)")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(run_interruptible(main))
