"""Perplexity baseline on WikiText-103 as in the original README: 987 batches of 2 windows of 128 tokens.

    python -m lsh_bitnet.wikitext103 --max-batches 500 --batch-size 2 --seq-len 128 --split validation --device cpu
    python -m lsh_bitnet.wikitext103 --model bitnet-2b                        # with the hub, the README's own run
    python -m lsh_bitnet.wikitext103 --corpus stdlib --attention simhash      # without it

`--corpus auto` is WikiText-103 for a hub model. For the project's own byte-level models it is the standard library's
source, which needs no network. The result file is named after the corpus that was read.
"""

from __future__ import annotations

from attentions.common.stopping import exit_on_signal, run_interruptible

if __name__ == "__main__":
    exit_on_signal()  # before the slow imports

from collections.abc import Sequence

from harness.common.command_line import count
from lsh_bitnet.commands import attention_of, baseline_parser, require_out, run
from lsh_bitnet.evaluate import evaluate, file_of
from lsh_bitnet.models import RANDOM, SMALL
from lsh_bitnet.results import save
from lsh_bitnet.settings import experiment_of
from tasks.corpora import CORPORA

OFFLINE = {*SMALL, *(f"random-{architecture}" for architecture in RANDOM)}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command."""
    parser = baseline_parser("wikitext103", "Measure perplexity on WikiText-103 in windows.")
    parser.add_argument("--max-batches", type=count(), default=987, help="maximum number of windows")
    parser.add_argument("--batch-size", type=count(), default=2, help="windows per batch")
    parser.add_argument("--seq-len", type=count(2), default=128, help="tokens per window")
    parser.add_argument(
        "--split",
        default="validation",
        choices=["train", "validation", "test"],
        help="split of the corpus (default: validation)",
    )
    parser.add_argument(
        "--corpus", default="auto", choices=["auto", "stdlib", *CORPORA], help="corpus to evaluate on (default: auto)"
    )
    parser.add_argument("--path", help="text file or folder of Parquet files, instead of the hub")
    given = parser.parse_args(arguments)
    corpus = given.corpus
    if corpus == "auto":
        corpus = "stdlib" if given.model in OFFLINE and given.path is None else "wikitext103"
    batches = "all" if given.max_batches == parser.get_default("max_batches") else f"{given.max_batches}batches"

    def work() -> int:
        folder = require_out(given)
        values = evaluate(
            experiment_of(
                {
                    "name": f"baseline_{corpus}_{given.split}_all_{batches}",
                    "model": given.model,
                    "attention": attention_of(given),
                    "text": {"corpus": corpus, "split": given.split, "path": given.path},
                    **{name: getattr(given, name) for name in ("seq_len", "batch_size", "max_batches")},
                    "device": given.device,
                    "dtype": given.dtype,
                },
                "these options",
            )
        )
        path = save(values["name"], values, folder, what=file_of(values))
        print(f"{corpus} {given.split}, {values['predicted_tokens']:,} of {values['tokens']:,} tokens predicted")
        print(f"Perplexity = {values['perplexity']:.2f} ({values['bits_per_byte']:.3f} bits per byte)")
        print(path)
        return 0

    return run(parser, work)


if __name__ == "__main__":
    raise SystemExit(run_interruptible(main))
