"""Train the language model.

    python -m lsh_v2.train                                  # train.yml: the original guide's full settings
    python -m lsh_v2.train lsh_v2/quick.yml                 # minutes on a laptop
    python -m lsh_v2.train lsh_v2/quick.yml --set model.attention=flash --set out=data/flash
    accelerate launch --num_processes 4 -m lsh_v2.train     # or: torchrun --nproc_per_node 4 -m lsh_v2.train

The same command again goes on at the newest checkpoint. Exit codes: 0 trained, 1 the run failed, 2 unusable input.
"""

from __future__ import annotations

import argparse
import errno
import sys
from collections.abc import Sequence
from pathlib import Path

from lsh_v2.training import CheckpointError, Trainer, load_training_config

FULL = Path(__file__).with_name("train.yml")
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def main(arguments: Sequence[str] | None = None) -> int:
    """Train as the configuration says, and print where the figures lie."""
    parser = argparse.ArgumentParser(prog="python -m lsh_v2.train", description="Train the language model.")
    parser.add_argument("config", nargs="?", type=Path, default=FULL, help="a YAML file (default: lsh_v2/train.yml)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change one key, a.b=value")
    given = parser.parse_args(arguments)
    try:
        trainer = Trainer(load_training_config(given.config, given.set))
        metrics = trainer.run()
    except (CheckpointError, FloatingPointError) as error:
        return _say(error, 1)
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        return _say(f"no room to write: {error}; the checkpoints written so far are whole", 1)
    except ValueError as error:
        return _say(error, 2)
    print(f"loss by epoch: {', '.join(f'{loss:.4f}' for loss in metrics['loss_train'])}")
    for kind, figures in metrics["accuracy"].items():
        print(f"{kind}: {figures['score']:.3f} ± {figures['standard_error']:.3f} (chance {figures['chance']:.3f})")
    print(f"{trainer.out / 'training_metrics.json'}")
    return 0


def _say(message: object, code: int) -> int:
    print(message, file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
