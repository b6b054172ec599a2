"""Identity of a run beyond its configuration: the files it reads, its tokens, and the source code."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from attentions import resolve
from harness.common.source_hash import source_hash
from lsh_v2.common.files import digest
from lsh_v2.training.configuration import TrainingConfig, differences, plain
from lsh_v2.training.data import task_of
from tasks.encoding import encode

if TYPE_CHECKING:
    from lsh_v2.common.schemas import RunIdentity
    from tasks.tokenizer import Tokenizer

SAMPLE = 32  # examples of each kind whose tokens are hashed

TOKENIZER_FILES = "[!.]*.j*"  # .json and .jinja, as read by transformers; no hidden files

# How messages name each part.
NAMES = {
    "train_file": "the content of train_file",
    "eval_file": "the content of eval_file",
    "tokenizer": "the tokenizer's files",
    "tokens": "the examples or their tokens",
    "code": "the source code",
}


def identity_of(config: TrainingConfig, tokenizer: Tokenizer) -> dict[str, str]:
    """Return a hash for each name in `NAMES`. Raises ValueError for tasks and files that cannot be read."""
    return {**files_of(config), "tokens": _tokens(config, tokenizer), "code": code_of(config)}


def files_of(config: TrainingConfig) -> dict[str, str]:
    """Hash the content of each file that a configuration names; empty if it names none."""
    files = {
        "train_file": config.train_file,
        "eval_file": config.eval_file,
        "tokenizer": config.tokenizer,
    }
    found = {name: "" if path is None else digest(Path(path)) for name, path in files.items()}
    return found | ({"tokenizer": trained_tokenizer(Path(config.out))} if config.tokenizer == "trained" else {})


def trained_tokenizer(out: Path) -> str:
    """Hash the files of the tokenizer that a run has trained; other files in its folder do not count."""
    return digest(out / "tokenizer", TOKENIZER_FILES)


def code_of(config: TrainingConfig) -> str:
    """Hash the source that a training run uses, including attention and task; comments and layout do not count."""
    return source_hash("lsh_v2.training.run", *modules_of(config))


def modules_of(config: TrainingConfig) -> tuple[str, str]:
    """Return the modules of the configured attention and task, which are not imported statically."""
    return resolve(config.model_of(vocab_size=259).attention).__module__, config.task.partition(":")[0]


def require_same(
    out: Path, before: RunIdentity, config: TrainingConfig, identity: dict[str, str] | None = None
) -> None:
    """Raise ValueError unless the run in `out` is this one; without an identity, compares only the configuration."""
    other = [name for name, found in (identity or {}).items() if before.identity.get(name) != found]
    refuse_other(out, differences(before.config, plain(config)), other, config)


def refuse_other(out: Path, keys: Sequence[str], other: Sequence[str], config: TrainingConfig) -> None:
    """Raise ValueError if the run in `out` differs in `keys` of the configuration or in parts `other` of `NAMES`."""
    if config.resume_other_code:
        other = [name for name in other if name != "code"]
    if not (keys or other):
        return
    advice = "choose another `out`, or remove it"
    if not keys and list(other) == ["code"]:
        advice += ", or continue anyway with resume_other_code: true"
    named = ", ".join([*keys, *(NAMES[name] for name in other)])
    raise ValueError(f"{out} holds a run of another configuration, which differs in {named}: {advice}")


def _tokens(config: TrainingConfig, tokenizer: Tokenizer) -> str:
    """Hash the tokens of the first examples, which covers tokenizers and tasks that have no files of their own."""
    whole = hashlib.sha256(str(tokenizer.vocab_size).encode())
    for evaluation in (False, True):
        for example in islice(task_of(config, evaluation=evaluation).stream(), SAMPLE):
            for part in encode(example, tokenizer, learn=config.learn):
                whole.update(part.numpy().tobytes())
    return whole.hexdigest()
