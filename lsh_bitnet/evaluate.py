"""Runs one experiment from a YAML file: perplexity with a given attention, and its comparisons, as timestamped JSON.

    python -m lsh_bitnet.evaluate lsh_bitnet/configs/wt2_bitnet_lsh_bitsampling.yaml
    python -m lsh_bitnet.evaluate lsh_bitnet/configs/wt2_bitnet_full.yaml --set model=tiny-bitnet \
        --set text.corpus=stdlib --set max_batches=4
"""

from __future__ import annotations

from attentions.common.stopping import exit_on_signal, run_interruptible

if __name__ == "__main__":
    exit_on_signal()  # before the slow imports

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from harness.measure.elapsed import Elapsed
from lsh_bitnet.commands import Parser, add_out, require_out, run, what_ran
from lsh_bitnet.models import Loaded, content_of, load_model
from lsh_bitnet.perplexity import measure_perplexity
from lsh_bitnet.results import save
from lsh_bitnet.settings import Experiment, read_experiment
from lsh_bitnet.swap import attend_with
from tasks.corpora import load_corpus


def evaluate(experiment: Experiment) -> dict[str, Any]:
    """Run an experiment: perplexity, bits per byte, exact token counts, seconds, and comparisons if swapped.

    The result includes hashes of the model's content and of the text, because names alone do not identify them.
    """
    loaded = load_model(experiment.model, device=experiment.device, dtype=experiment.dtype)
    text = load_corpus(experiment.text.corpus, experiment.text.split, path=experiment.text.path)
    return {
        **experiment.model_dump(),
        "model_content": content_of(experiment.model),
        "text_sha256": hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest(),
        **measure(loaded, text, experiment),
    }


def measure(loaded: Loaded, text: str, experiment: Experiment) -> dict[str, Any]:
    """Measure the perplexity of a loaded model on a text, with the experiment's attention and windows.

    The quantised linears run uncompiled, because compiling them takes longer than most runs.
    """
    wanted = experiment.attention
    swap = (
        nullcontext()
        if wanted is None
        else attend_with(loaded.model, wanted.backend, dense_layers=wanted.dense_layers, count=True, **wanted.settings)
    )
    elapsed = Elapsed()
    with swap as swapped, torch.compiler.set_stance("force_eager"):
        found = measure_perplexity(
            loaded,
            text,
            seq_len=experiment.seq_len,
            batch_size=experiment.batch_size,
            max_batches=experiment.max_batches,
        )
    values: dict[str, Any] = {
        "perplexity": found.perplexity,
        "bits_per_byte": found.bits_per_byte,
        "nats": found.nats,
        "tokens": found.tokens,
        "predicted_tokens": found.predicted,
        "text_bytes": found.text_bytes,
        "time_s": elapsed.seconds(),
    }
    if swapped is not None and swapped.log is not None:
        values |= swapped.log.summary()
    return values


def file_of(values: Mapping[str, Any]) -> str:
    """Return the descriptive part of a result's file name: model, text, and attention."""
    attention = values["attention"]
    text = f"{values['text']['corpus']}-{values['text']['split']}"
    return what_ran(values["model"], text, attention["backend"] if attention else "full")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command."""
    parser = Parser(prog="python -m lsh_bitnet.evaluate", description="Run one experiment from a YAML file.")
    parser.add_argument("config", help="YAML file of the experiment")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a value of the file")
    add_out(parser)
    given = parser.parse_args(arguments)

    def work() -> int:
        folder = require_out(given)
        values = evaluate(read_experiment(Path(given.config), given.set))
        path = save(values["name"], values, folder, what=file_of(values))
        ratio = f", {values['comparison_ratio']:.1%} of full attention's comparisons" if "comparisons" in values else ""
        print(
            f"perplexity {values['perplexity']:.2f}, {values['bits_per_byte']:.3f} bits per byte, "
            f"{values['predicted_tokens']:,} tokens{ratio}"
        )
        print(path)
        return 0

    return run(parser, work)


if __name__ == "__main__":
    raise SystemExit(run_interruptible(main))
