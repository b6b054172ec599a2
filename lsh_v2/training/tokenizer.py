"""The tokenizer of a run: bytes, an existing tokenizer, or one trained on the run's own examples.

In bytes, a number is several tokens, which a model must learn to combine before it can compute with them; a run of
minutes has no time for that. A trained tokenizer has one token for each frequent word or number with its leading space.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from attentions.common.extras import missing_extra
from harness.common.source_hash import source_hash
from lsh_v2.common.files import digest, read_object
from lsh_v2.common.schemas import RunIdentity, TokenizerOrigin, TrainingState
from lsh_v2.training.checkpoint import checkpoints, read_state
from lsh_v2.training.data import task_of
from lsh_v2.training.identity import NAMES, TOKENIZER_FILES, refuse_other, trained_tokenizer
from lsh_v2.training.metrics import METRICS
from tasks.tokenizer import Tokenizer, load_tokenizer

if TYPE_CHECKING:
    from lsh_v2.training.configuration import TrainingConfig

ORIGIN = "made_of.json"
EXAMPLES = 2000  # used to train a tokenizer
WORDS = r" ?\S+|\s"


def tokenizer_of(config: TrainingConfig) -> Tokenizer:
    """Return the tokenizer that a configuration names; "trained" trains one in the run's folder.

    An existing trained tokenizer is retrained if its texts, size, or code have changed. If a run has already started
    with it, ValueError is raised instead, and also if its files were modified. Runs of an earlier version, which did
    not record what the tokenizer was made from, keep it if its files are those that the run started with.
    """
    if config.tokenizer != "trained":
        return load_tokenizer(config.tokenizer)
    out = Path(config.out)
    folder, wanted = out / "tokenizer", _origin(config)
    if not folder.exists():
        train_tokenizer(config, folder, wanted)
    elif differing := _differing(folder, wanted):
        if begun(out):
            keys = [name for name in differing if name not in NAMES]
            refuse_other(out, keys, [name for name in differing if name in NAMES], config)
        elif "tokenizer" in differing:
            raise ValueError(f"{folder} is not a tokenizer made by training: remove it, or choose another `out`")
        else:
            train_tokenizer(config, folder, wanted)
    return load_tokenizer(str(folder))


def begun(out: Path) -> bool:
    """Whether a folder holds checkpoints or metrics of a run."""
    return bool(checkpoints(out / "checkpoints")) or (out / METRICS).exists()


def _begun_as(out: Path) -> RunIdentity | None:
    """Return the identity of the run in a folder, None if there is none."""
    found = checkpoints(out / "checkpoints")
    return read_object(out / METRICS, RunIdentity) or (read_state(found[-1], TrainingState) if found else None)


def _origin(config: TrainingConfig) -> TokenizerOrigin:
    """Describe what a tokenizer of this configuration is made from, without training it."""
    whole = hashlib.sha256()
    for text in _texts(config):
        whole.update(f"{len(text)} {text}".encode())
    code = source_hash(__name__)
    return TokenizerOrigin(tokenizer_size=config.tokenizer_size, texts=whole.hexdigest(), code=code, files="")


def _texts(config: TrainingConfig) -> Iterator[str]:
    task = task_of(config, evaluation=False)
    return (task.example(index).text for index in range(EXAMPLES))


def _differing(folder: Path, wanted: TokenizerOrigin) -> list[str]:
    """Return where a tokenizer differs from the one wanted: keys of the configuration, or names in `NAMES`."""
    try:
        held = read_object(folder / ORIGIN, TokenizerOrigin)
    except ValueError:
        held = None
    run = _begun_as(folder.parent) if held is None else None  # an earlier version did not write this file
    if run is not None and run.identity.get("tokenizer") == trained_tokenizer(folder.parent):
        return [] if run.config.get("tokenizer_size") == wanted.tokenizer_size else ["tokenizer_size"]
    if held is None or held.files != _files(folder):
        return ["tokenizer"]
    pairs = {
        "tokenizer_size": (held.tokenizer_size, wanted.tokenizer_size),
        "tokens": (held.texts, wanted.texts),
        "code": (held.code, wanted.code),
    }
    return [name for name, (one, two) in pairs.items() if one != two]


def _files(folder: Path) -> str:
    """Hash the files of a tokenizer."""
    whole = hashlib.sha256()
    for path in sorted(folder.glob(TOKENIZER_FILES)):
        if path.name != ORIGIN:
            whole.update(f"{path.name}\0{digest(path)}\0".encode())
    return whole.hexdigest()


def train_tokenizer(config: TrainingConfig, folder: Path, origin: TokenizerOrigin) -> None:
    """Train a byte-level BPE tokenizer of `tokenizer_size` tokens on training examples and save it as a Hugging Face
    tokenizer, with a record of what it was made from. Replaces an existing one."""
    try:
        from tokenizers import Regex, decoders, models, pre_tokenizers, trainers
        from tokenizers import Tokenizer as Trainable
        from transformers import PreTrainedTokenizerFast
    except ImportError as error:
        raise missing_extra("models", error) from error

    trainable = Trainable(models.BPE())
    split = pre_tokenizers.Split(Regex(WORDS), behavior="isolated")
    bytelevel = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    trainable.pre_tokenizer = pre_tokenizers.Sequence([split, bytelevel])  # type: ignore[assignment]
    trainable.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    trainer = trainers.BpeTrainer(
        vocab_size=config.tokenizer_size,
        special_tokens=["<pad>", "<bos>", "<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    trainable.train_from_iterator(_texts(config), trainer)
    made = PreTrainedTokenizerFast(
        tokenizer_object=trainable,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        clean_up_tokenization_spaces=False,
    )
    draft = folder.with_name(".tokenizer")
    shutil.rmtree(draft, ignore_errors=True)  # left by a killed run
    made.save_pretrained(draft)
    whole = origin.model_copy(update={"files": _files(draft)})
    (draft / ORIGIN).write_text(whole.model_dump_json() + "\n", encoding="utf-8")
    if folder.exists():
        shutil.rmtree(folder)
    draft.rename(folder)
