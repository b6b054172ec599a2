"""Accuracy baseline on the New York task as in the original README: 50 samples, the adjective before the 2nd mention.

python -m lsh_bitnet.new_york --n-samples 50 --batch-size 1 --device cpu
python -m lsh_bitnet.new_york --model bitnet-2b --wording full --length 512      # with the hub
python -m lsh_bitnet.new_york --attention lsh_forest --settings '{"max_candidates": 128}'
"""

from __future__ import annotations

from attentions.common.stopping import exit_on_signal, run_interruptible

if __name__ == "__main__":
    exit_on_signal()  # before the slow imports

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch

from harness.common.command_line import count
from harness.measure.elapsed import Elapsed
from lsh_bitnet.answers import measure_accuracy
from lsh_bitnet.commands import attention_of, baseline_parser, require_out, run, what_ran
from lsh_bitnet.models import content_of, load_model, require_length
from lsh_bitnet.results import save
from lsh_bitnet.swap import attend_with
from tasks.new_york import QUESTIONS, NewYork

MOST_TOKENS = 2**33  # limit on the tokens of all prompts


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command."""
    parser = baseline_parser(
        "new_york", "Measure accuracy on the New York task: the adjective before the n-th mention."
    )
    parser.add_argument("--n-samples", type=count(), default=50, help="examples")
    parser.add_argument("--batch-size", type=count(), default=1, help="prompts per batch, padded on the left")
    parser.add_argument("--length", type=count(), default=1024, help="maximum tokens of a prompt with its answer")
    parser.add_argument("--nth", type=count(), default=2, help="mention asked for, counted from 1")
    parser.add_argument("--decoys", type=count(0), default=2, help="number of adjectives before other cities")
    parser.add_argument("--distance", type=count(0), help="tokens from the mention to the answer (default: any)")
    parser.add_argument("--wording", default="short", choices=list(QUESTIONS), help="wording of the question")
    parser.add_argument("--seed", type=int, default=0, help="seed of the prompts (default: 0)")
    given = parser.parse_args(arguments)

    def work() -> int:
        folder = require_out(given)
        require_size(given.length, given.n_samples)
        values = _measure(given)
        what = what_ran(given.model, given.attention or "full")
        path = save(f"baseline_synthetic_ny_adj_{given.n_samples}samples", values, folder, what=what)
        low, high = values["interval"]
        print(
            f"Accuracy = {values['accuracy']:.1%} ({values['right']}/{values['samples']}; 95 % {low:.1%} to {high:.1%})"
        )
        print(path)
        return 0

    return run(parser, work)


def require_size(length: int, samples: int) -> None:
    """Raise ValueError if the total number of tokens is too large to process."""
    if length * samples > MOST_TOKENS:
        raise ValueError(
            f"--n-samples {samples} of --length {length} are not allowed: at most {MOST_TOKENS} tokens in total"
        )


def _measure(given: Any) -> dict[str, Any]:
    wanted = attention_of(given)
    loaded = load_model(given.model, device=given.device, dtype=given.dtype)
    require_length(loaded, given.length)
    task = NewYork(
        given.length,
        nth=given.nth,
        decoys=given.decoys,
        distance=given.distance,
        wording=given.wording,
        tokenizer=loaded.tokenizer,
        seed=given.seed,
    )
    swap = nullcontext()
    if wanted is not None:
        settings = wanted["settings"]
        swap = attend_with(loaded.model, wanted["backend"], dense_layers=wanted["dense_layers"], count=True, **settings)
    elapsed = Elapsed()
    with swap as swapped, torch.compiler.set_stance("force_eager"):
        found = measure_accuracy(loaded, task, samples=given.n_samples, batch_size=given.batch_size)
    values = {name: value for name, value in vars(given).items() if name not in ("out", "settings", "dense_layers")}
    values |= {
        "attention": wanted,
        "model_content": content_of(given.model),
        "accuracy": found.accuracy,
        "interval": found.interval,
        "right": found.right,
        "samples": found.samples,
        "answers": found.answers,
        "targets": found.targets,
        "scores": found.scores,
        "time_s": elapsed.seconds(),
    }
    if swapped is not None and swapped.log is not None:
        values |= swapped.log.summary()
    return values


if __name__ == "__main__":
    raise SystemExit(run_interruptible(main))
