"""The tokenizer of a run: bytes, one that exists, or one trained on the run's own examples.

In bytes a number is several tokens, which a model must gather before it can compute with them; minutes of training are
better spent otherwise. A trained tokenizer has one token for each frequent word or number with the space before it.
"""

from __future__ import annotations

from pathlib import Path

from attentions.extras import missing_extra
from lsh_v2.training.configuration import TrainingConfig
from lsh_v2.training.data import task_of
from tasks.tokenizer import Tokenizer, load_tokenizer

EXAMPLES = 2000  # read to train one
WORDS = r" ?\S+|\s"


def tokenizer_of(config: TrainingConfig) -> Tokenizer:
    """The tokenizer that a configuration names; "trained" makes one, once, in the run's folder."""
    if config.tokenizer != "trained":
        return load_tokenizer(config.tokenizer)
    folder = Path(config.out) / "tokenizer"
    if not folder.exists():
        train_tokenizer(config, folder)
    return load_tokenizer(str(folder))


def train_tokenizer(config: TrainingConfig, folder: Path) -> None:
    """Byte-level BPE of `tokenizer_size` tokens on training examples, saved as a Hugging Face tokenizer."""
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
    task = task_of(config, evaluation=False)
    trainable.train_from_iterator((task.example(index).text for index in range(EXAMPLES)), trainer)
    made = PreTrainedTokenizerFast(
        tokenizer_object=trainable,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        clean_up_tokenization_spaces=False,
    )
    draft = folder.with_name(".tokenizer")
    made.save_pretrained(draft)
    draft.rename(folder)
