"""What decides a run's result beside its configuration: the files that it reads, its tokens, and the source."""

from __future__ import annotations

import hashlib
from itertools import islice
from pathlib import Path
from typing import Any

from attentions import resolve
from harness.source import source_hash
from lsh_v2.files import digest
from lsh_v2.training.configuration import TrainingConfig, differences, plain
from lsh_v2.training.data import task_of
from tasks.encoding import encode
from tasks.tokenizer import Tokenizer

SAMPLE = 32  # examples of each kind whose tokens are hashed

# What each part is called in a message.
NAMES = {
    "train_file": "the content of train_file",
    "eval_file": "the content of eval_file",
    "tokenizer": "the tokenizer's files",
    "tokens": "the examples or their tokens",
    "code": "the source code",
}


def identity_of(config: TrainingConfig, tokenizer: Tokenizer) -> dict[str, str]:
    """A hash for each name in `NAMES`. Raises ValueError for tasks and files that cannot be read."""
    files = {
        "train_file": config.train_file,
        "eval_file": config.eval_file,
        "tokenizer": str(Path(config.out) / "tokenizer") if config.tokenizer == "trained" else config.tokenizer,
    }
    hashes = {name: "" if path is None else digest(Path(path)) for name, path in files.items()}
    return {**hashes, "tokens": _tokens(config, tokenizer), "code": code_of(config)}


def code_of(config: TrainingConfig) -> str:
    """Hash of the source that a training runs, attention and task included; comments and layout do not count."""
    attention = resolve(config.model_of(vocab_size=259).attention)
    return source_hash("lsh_v2.training.run", attention.__module__, config.task.partition(":")[0])


def require_same(out: Path, before: dict[str, Any], config: TrainingConfig, identity: dict[str, str]) -> None:
    """Raise ValueError unless the run that `out` holds, as far as `before` says, is this one."""
    keys = differences(before["config"], plain(config))
    held = before.get("identity") or {**identity, "code": "unknown"}
    other = [name for name, found in identity.items() if held.get(name) != found]
    if config.resume_other_code:
        other = [name for name in other if name != "code"]
    if not (keys or other):
        return
    advice = "choose another `out`, or remove it"
    if not keys and other == ["code"]:
        advice += ", or go on all the same with resume_other_code: true"
    named = ", ".join([*keys, *(NAMES[name] for name in other)])
    raise ValueError(f"{out} holds a run of another configuration, different in {named}: {advice}")


def _tokens(config: TrainingConfig, tokenizer: Tokenizer) -> str:
    """Hash of the tokens of the first examples: what a tokenizer or a task without files of its own comes to."""
    whole = hashlib.sha256(str(tokenizer.vocab_size).encode())
    for evaluation in (False, True):
        for example in islice(task_of(config, evaluation=evaluation).stream(), SAMPLE):
            for part in encode(example, tokenizer, learn=config.learn):
                whole.update(part.numpy().tobytes())
    return whole.hexdigest()
