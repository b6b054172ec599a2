"""Runs the whole pipeline in one command: checks of model and data, training, profile, long arena, and success flags.

    python -m lsh_v2.pipeline --quick          # small model, short sequences: minutes on two cores
    python -m lsh_v2.pipeline                  # the guide's full settings: hours on a GPU
    python -m lsh_v2.pipeline --test-only      # only the model and data checks
    python -m lsh_v2.pipeline --no-training    # benchmark the model trained before
    python -m lsh_v2.pipeline --no-benchmark

A finished phase leaves an OK marker (`data/results/*.ok`), which becomes invalid when its settings, inputs, source, or
results change. Running the same command again continues with the first phase without a valid marker; `--force` starts
over. Each phase runs as a separate command, whose output goes to the screen and to `data/results/*.log`.
`final_results/pipeline_results.json` records what ran and which of the guide's success flags the measurements support,
each with its figure. Exit status: 0 all phases done, 1 a phase failed (its traceback is printed), 2 unusable input, 130
interrupted.
"""

from __future__ import annotations

from attentions.common.stopping import exit_on_signal, run_interruptible

if __name__ == "__main__":
    exit_on_signal()  # before the slow imports

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from harness.results.run_dir import require_folder
from lsh_v2.arena.config import load_arena_config
from lsh_v2.pipeline.flags import flags_of, shown
from lsh_v2.pipeline.phases import Layout, config_of, phases_of
from lsh_v2.pipeline.run import PhaseFailed, run_phases, write_results
from lsh_v2.training import checks
from lsh_v2.training.configuration import load_training_config

FAILED, UNUSABLE, INTERRUPTED = 1, 2, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command with these arguments (default: `sys.argv`); returns the exit status."""
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
        print("interrupted; the same command continues with this phase", file=sys.stderr)
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
    """Raise ValueError for folders, configurations, and earlier results that would stop the pipeline later."""
    for folder in (layout.results, layout.manifest.parent):
        require_folder(folder, "--root")
    checks.require_possible(load_training_config(config_of(layout, "train"), [f"out={layout.training}"]))
    if benchmark:
        load_arena_config(config_of(layout, "long_arena"))
    phases = phases_of(layout, training=training, benchmark=benchmark) if force else []
    flags_of(layout, without={path for phase in phases for path in phase.makes})  # these are removed first


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m lsh_v2.pipeline", description="Train, measure and evaluate LSH v2."
    )
    parser.add_argument("--quick", action="store_true", help="short sequences and a small model")
    parser.add_argument("--no-training", action="store_true", help="skip training and profile")
    parser.add_argument("--no-benchmark", action="store_true", help="skip the long arena")
    parser.add_argument("--test-only", action="store_true", help="only model and data")
    parser.add_argument("--force", action="store_true", help="remove the results of these phases and start over")
    parser.add_argument("--root", type=Path, default=Path(), help="folder of data/ and final_results/ (default: here)")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(run_interruptible(main))
