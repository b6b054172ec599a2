"""What decides a run's result beside its configuration: the files that it reads, its tokens, and the source."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from attentions import resolve
from harness.source import source_hash
from lsh_v2.files import digest
from lsh_v2.schemas import RunIdentity
from lsh_v2.training.configuration import TrainingConfig, differences, plain
from lsh_v2.training.data import task_of
from tasks.encoding import encode
from tasks.tokenizer import Tokenizer

SAMPLE = 32  # examples of each kind whose tokens are hashed

TOKENIZER_FILES = "[!.]*.j*"  # .json and .jinja, which transformers reads; not what a file manager leaves beside them

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
    return {**files_of(config), "tokens": _tokens(config, tokenizer), "code": code_of(config)}


def files_of(config: TrainingConfig) -> dict[str, str]:
    """A hash of the content of each file that a configuration names, empty for none."""
    files = {
        "train_file": config.train_file,
        "eval_file": config.eval_file,
        "tokenizer": config.tokenizer,
    }
    found = {name: "" if path is None else digest(Path(path)) for name, path in files.items()}
    return found | ({"tokenizer": trained_tokenizer(Path(config.out))} if config.tokenizer == "trained" else {})


def trained_tokenizer(out: Path) -> str:
    """Hash of the files of the tokenizer that a run has trained; what else lies beside them does not count."""
    return digest(out / "tokenizer", TOKENIZER_FILES)


def code_of(config: TrainingConfig) -> str:
    """Hash of the source that a training runs, attention and task included; comments and layout do not count."""
    return source_hash("lsh_v2.training.run", *modules_of(config))


def modules_of(config: TrainingConfig) -> tuple[str, str]:
    """The modules of the attention and of the task that a configuration names, which no import does."""
    return resolve(config.model_of(vocab_size=259).attention).__module__, config.task.partition(":")[0]


def require_same(
    out: Path, before: RunIdentity, config: TrainingConfig, identity: dict[str, str] | None = None
) -> None:
    """Raise ValueError unless the run that `out` holds is this one; without an identity, if it is configured alike."""
    other = [name for name, found in (identity or {}).items() if before.identity.get(name) != found]
    refuse_other(out, differences(before.config, plain(config)), other, config)


def refuse_other(out: Path, keys: Sequence[str], other: Sequence[str], config: TrainingConfig) -> None:
    """Raise ValueError if the run that `out` holds differs in `keys` of the configuration or in `other` of `NAMES`."""
    if config.resume_other_code:
        other = [name for name in other if name != "code"]
    if not (keys or other):
        return
    advice = "choose another `out`, or remove it"
    if not keys and list(other) == ["code"]:
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
