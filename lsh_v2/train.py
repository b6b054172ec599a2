"""Trains the language model.

    python -m lsh_v2.train                                  # train.yml: the original guide's full settings
    python -m lsh_v2.train lsh_v2/quick.yml                 # minutes on a laptop
    python -m lsh_v2.train lsh_v2/quick.yml --set model.attention=flash --set model.attention_settings={}
    torchrun --nproc_per_node 4 -m lsh_v2.train             # four GPUs, or CPU processes with device=cpu
    accelerate launch --num_processes 4 -m lsh_v2.train     # four GPUs; on a CPU it starts one process without mpirun

Running the same command again resumes from the newest checkpoint. Exit status: 0 trained, 1 the run failed, 2 unusable
input, 130 interrupted.
"""

from __future__ import annotations

from attentions.common.stopping import exit_on_signal, run_interruptible

if __name__ == "__main__":
    exit_on_signal()  # before the slow imports

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lsh_v2.common.endings import FAILED, end
from lsh_v2.training.checkpoint import CheckpointError
from lsh_v2.training.configuration import load_training_config
from lsh_v2.training.metrics import METRICS
from lsh_v2.training.trainer import Trainer

FULL = Path(__file__).with_name("train.yml")


def main(arguments: Sequence[str] | None = None) -> int:
    """Train with a configuration and print the path of the metrics."""
    parser = argparse.ArgumentParser(prog="python -m lsh_v2.train", description="Train the language model.")
    parser.add_argument("config", nargs="?", type=Path, default=FULL, help="a YAML file (default: lsh_v2/train.yml)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override one key, a.b=value")
    given = parser.parse_args(arguments)
    out = Path()
    try:
        config = load_training_config(given.config, given.set)
        out = Path(config.out)
        metrics = Trainer(config).run()
    except CheckpointError as error:
        print(error, file=sys.stderr)
        return FAILED
    except (Exception, KeyboardInterrupt) as error:
        return end(error, out, "checkpoints written so far are complete, and the same command continues")
    from accelerate import PartialState  # lsh_v2.training reports how to install it if it is missing

    if PartialState(cpu=config.device == "cpu").is_main_process:
        _report(metrics, out)
    return 0


def _report(metrics: dict[str, Any], out: Path) -> None:
    print(f"loss by epoch: {', '.join(f'{loss:.4f}' for loss in metrics['loss_train'])}")
    for kind, figures in metrics["accuracy"].items():
        print(f"{kind}: {figures['score']:.3f} ± {figures['standard_error']:.3f} (chance {figures['chance']:.3f})")
    print(out / METRICS)


if __name__ == "__main__":
    sys.exit(run_interruptible(main))
