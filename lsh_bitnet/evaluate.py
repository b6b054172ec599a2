"""One experiment from a YAML file: perplexity with the attention it names, comparisons counted, as timestamped JSON.

    python -m lsh_bitnet.evaluate lsh_bitnet/configs/wt2_bitnet_lsh_bitsampling.yaml
    python -m lsh_bitnet.evaluate lsh_bitnet/configs/wt2_bitnet_full.yaml --set model=tiny-bitnet \
        --set text.corpus=stdlib --set max_batches=4
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import yaml

from lsh_bitnet.models import Loaded, load_model
from lsh_bitnet.perplexity import measure_perplexity
from lsh_bitnet.results import FOLDER, save
from lsh_bitnet.settings import Experiment, read_experiment
from lsh_bitnet.swap import attend_with
from tasks.corpora import load_corpus


def evaluate(experiment: Experiment) -> dict[str, Any]:
    """What an experiment finds: perplexity, bits per byte, exact token counts, seconds, and comparisons if swapped."""
    loaded = load_model(experiment.model, device=experiment.device, dtype=experiment.dtype)
    text = load_corpus(experiment.text.corpus, experiment.text.split, path=experiment.text.path)
    return {**experiment.model_dump(), **measure(loaded, text, experiment)}


def measure(loaded: Loaded, text: str, experiment: Experiment) -> dict[str, Any]:
    """Perplexity of a loaded model on a text, with the experiment's attention and windows.

    The quantised linears are run as they are written, not compiled: compiling them takes longer than most runs.
    """
    wanted = experiment.attention
    swap = (
        nullcontext()
        if wanted is None
        else attend_with(loaded.model, wanted.backend, dense_layers=wanted.dense_layers, count=True, **wanted.settings)
    )
    started = time.perf_counter()
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
        "time_s": time.perf_counter() - started,
    }
    if swapped is not None and swapped.log is not None:
        log = swapped.log
        values |= {"comparisons": log.made, "full_comparisons": log.full, "comparison_ratio": log.ratio}
        values["by_layer"] = {str(layer): counts.ratio for layer, counts in sorted(log.layers.items())}
    return values


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="python -m lsh_bitnet.evaluate", description="One experiment from a YAML file."
    )
    parser.add_argument("config", type=Path)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="replace a value of the file")
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder of the JSON file")
    given = parser.parse_args(arguments)
    try:
        changes = {key: yaml.safe_load(value) for key, value in (_pair(text) for text in given.set)}
        values = evaluate(read_experiment(given.config, changes))
    except ValueError as error:
        parser.error(str(error))
    ratio = f", {values['comparison_ratio']:.1%} of full attention's comparisons" if "comparisons" in values else ""
    print(
        f"perplexity {values['perplexity']:.2f}, {values['bits_per_byte']:.3f} bits per byte, "
        f"{values['predicted_tokens']:,} tokens{ratio}"
    )
    print(save(values["name"], values, given.out))
    return 0


def _pair(text: str) -> tuple[str, str]:
    key, sign, value = text.partition("=")
    if not sign:
        raise ValueError(f"--set {text} is not allowed: it must be KEY=VALUE")
    return key, value


if __name__ == "__main__":
    raise SystemExit(main())
