"""Profiles a forward pass over lengths: each part of the model, and each stage of its attention.

    python -m lsh_v2.profile data/results                        # a trained run or checkpoint
    python -m lsh_v2.profile --size 25M --set attention=flash --lengths 1024 4096

Writes `component_profiles.json`, with keys such as `hashing_ms`, `bucket_attn_ms`, and `global_ms` for each length, and
a figure (`lsh_v2.model.component_profile`). Also runs `harness.profile` on the attention alone, with correctness
checks, in fresh processes, and writes its report to `component_report/`; `--no-report` skips that. Exit status: 0 done,
1 disk full, 2 unusable input, 130 interrupted.
"""

from __future__ import annotations

from attentions.common.stopping import exit_on_signal, run_interruptible

if __name__ == "__main__":
    exit_on_signal()  # before the slow imports

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness.config.grid import MAX_SIZE
from harness.results.run_dir import require_folder
from lsh_v2.common.endings import UNUSABLE, end
from lsh_v2.model.component_profile import LENGTHS, PROFILES, profile_model
from lsh_v2.model.language_model import LSHv2Model
from lsh_v2.model.presets import model_of_command
from lsh_v2.profile_stages import report_stages
from lsh_v2.training.checkpoint import CheckpointError, load_model

REPORT = "component_report"


def main(arguments: Sequence[str] | None = None) -> int:
    """Profile a trained model, or a new one of a given size; prints a table and the path of the file."""
    parser = argparse.ArgumentParser(
        prog="python -m lsh_v2.profile", description="Measure where a forward pass spends time."
    )
    parser.add_argument("checkpoint", nargs="?", type=Path, help="a checkpoint or a run's folder")
    parser.add_argument("--size", help="parameters of a new model, without a checkpoint (default: 25M)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override a key of the new model"
    )
    parser.add_argument(
        "--lengths", type=int, nargs="+", default=list(LENGTHS), metavar="N", help="sequence lengths in tokens"
    )
    parser.add_argument("--out", type=Path, default=Path("data/results"), help="folder (default: data/results)")
    parser.add_argument("--no-report", action="store_true", help="skip the harness's report on the attention")
    given = parser.parse_args(arguments)
    try:
        require_folder(given.out, "--out")
        model = _model(given)
        profile = profile_model(model, given.out, lengths=given.lengths)
        print(table(profile))
        print(given.out / PROFILES)
        if given.no_report:
            return 0
        shutil.rmtree(given.out / REPORT, ignore_errors=True)
        return report_stages(model.config, given.out / REPORT, lengths=given.lengths)
    except CheckpointError as error:
        print(error, file=sys.stderr)
        return UNUSABLE
    except (Exception, KeyboardInterrupt) as error:
        return end(error, given.out)


def table(profile: dict[str, Any]) -> str:
    """Format the milliseconds of each component as a table, one column per length."""
    rows = profile["lengths"]
    lines = [["", *(f"{row['seq_len']:,}" for row in rows)]]
    lines += [[name, *(f"{row[name]:.4g}" for row in rows)] for name in rows[0] if name != "seq_len"]
    return "\n".join(f"{name:<26}" + "".join(f"{cell:>10}" for cell in cells) for name, *cells in lines)


def stretched(model: LSHv2Model, n: int) -> LSHv2Model:
    """Return a model with the same weights that accepts n tokens; the model itself if it already does."""
    if n <= model.config.max_seq_len:
        return model
    longer = LSHv2Model(model.config.model_copy(update={"max_seq_len": n}))
    longer.load_state_dict(model.state_dict())
    return longer.eval()


def _model(given: argparse.Namespace) -> LSHv2Model:
    """Build the requested model. Raises ValueError for invalid lengths and keys."""
    if wrong := [n for n in given.lengths if not 1 <= n <= MAX_SIZE]:
        raise ValueError(f"--lengths {wrong[0]} is not allowed; it must be integers from 1 to {MAX_SIZE}")
    if given.checkpoint is None:
        return model_of_command(given.size or "25M", given.set)
    if given.set or given.size:
        raise ValueError("--set and --size are not allowed with a checkpoint, whose model is fixed")
    return stretched(load_model(given.checkpoint), max(given.lengths))


if __name__ == "__main__":
    sys.exit(run_interruptible(main))
