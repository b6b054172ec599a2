"""Checks the model of a training configuration before hours are spent on training it.

    python -m lsh_v2.pipeline.check lsh_v2/train.yml data/results data/results/model_check.json

Arguments: the configuration, the folder of the training (where a tokenizer trained here is kept), and the report file.
Compares the number of parameters with the requested size, runs the model on text, and decodes token by token; the
logits must be finite and agree.
"""

from __future__ import annotations

from attentions.common.stopping import exit_on_signal, run_interruptible

if __name__ == "__main__":
    exit_on_signal()  # before the slow imports

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from harness.measure.gate import not_finite, relative_error
from harness.results.run_dir import require_folder
from lsh_v2.common.endings import end
from lsh_v2.model.language_model import LSHv2Model
from lsh_v2.model.sizes import parse_size
from lsh_v2.training.checks import require_possible
from lsh_v2.training.configuration import TrainingConfig, load_training_config
from lsh_v2.training.tokenizer import tokenizer_of
from tasks.text import TextBytes

TOKENS = 96
SIZE_TOLERANCE = 0.03
TOLERANCE = 1e-3  # relative error of decoding against one pass, in float32 through many layers


def main(arguments: Sequence[str] | None = None) -> int:
    """Check the model and write the report; returns 1 if a check fails."""
    parser = argparse.ArgumentParser(
        prog="python -m lsh_v2.pipeline.check", description="Check the model before training."
    )
    parser.add_argument("config", type=Path, help="the YAML file of the training")
    parser.add_argument("out", type=Path, help="the output folder of the training")
    parser.add_argument("report", type=Path, help="the JSON file to write")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override one key, a.b=value")
    given = parser.parse_args(arguments)
    try:
        require_folder(given.report.parent, "report")
        config = load_training_config(given.config, [*given.set, f"out={given.out}"])
        require_possible(config)
        found = check(config)
        given.report.parent.mkdir(parents=True, exist_ok=True)
        given.report.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    except (Exception, KeyboardInterrupt) as error:
        return end(error, given.report)
    print(json.dumps(found))
    for wrong in found["wrong"]:
        print(f"wrong: {wrong}", file=sys.stderr)
    return 1 if found["wrong"] else 0


@torch.no_grad()
def check(config: TrainingConfig) -> dict[str, Any]:
    """Return figures of the model, and under `wrong` one sentence per failed check."""
    tokenizer = tokenizer_of(config)
    model = LSHv2Model(config.model_of(tokenizer.vocab_size)).eval()
    count = sum(p.numel() for p in model.parameters())
    found: dict[str, Any] = {"attention": model.config.attention, "parameters": count, "asked": config.model_size}
    wrong = []
    if config.model_size and abs(count / (target := parse_size(config.model_size)) - 1) > SIZE_TOLERANCE:
        wrong.append(f"{count} parameters instead of {target}")
    ids = TextBytes().tokens(min(TOKENS, model.config.max_seq_len)).long()[None]
    logits = model(ids)["logits"]
    if tuple(logits.shape) != (1, ids.shape[1], tokenizer.vocab_size):
        wrong.append(f"logits have shape {tuple(logits.shape)}")
    if reason := not_finite(logits):
        wrong.append(reason)
    if stream := model.stream(1):
        decoded = torch.cat([stream.extend(ids[:, i : i + 1]) for i in range(ids.shape[1])], dim=1)
        found["decoding_error"] = relative_error(decoded, logits)
        if found["decoding_error"] > TOLERANCE:
            wrong.append(f"decoding token by token differs from one pass by {found['decoding_error']:.2g} (relative)")
    return {**found, "wrong": wrong}


if __name__ == "__main__":
    sys.exit(run_interruptible(main))
