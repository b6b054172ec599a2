from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer as Fast
from tokenizers import decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from tasks.byte_tokenizer import ByteTokenizer
from tasks.encoding import IGNORED, collate, encode, encode_prompt
from tasks.example import Example
from tasks.mqar import MQARText
from tasks.needles import Needles
from tasks.new_york import NewYork
from tasks.text import TextBytes
from tasks.tokenizer import Tokenizer, load_tokenizer

BYTES = ByteTokenizer()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face tokenizer on disk: byte-level BPE of 400 tokens, without pad and bos tokens."""
    fast = Fast(models.BPE())
    fast.pre_tokenizer, fast.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<end>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    fast.train_from_iterator([bytes(TextBytes().tokens(50_000).tolist()).decode(errors="ignore")], trainer)
    path = tmp_path_factory.mktemp("tokenizer")
    PreTrainedTokenizerFast(tokenizer_object=fast, eos_token="<end>").save_pretrained(path)
    return path


@pytest.fixture(params=["bytes", "hub"])
def tokenizer(request: pytest.FixtureRequest, folder: Path) -> Tokenizer:
    return load_tokenizer("bytes" if request.param == "bytes" else str(folder))


@pytest.mark.parametrize("text", ["", "def f(x):\n    return x", "naïve – 東京 🙂", "\x00\x7f"])
def test_decoding_gives_the_text_back(tokenizer: Tokenizer, text: str) -> None:
    tokens = tokenizer.encode(text)
    assert tokenizer.decode([tokenizer.bos_id, *tokens, tokenizer.eos_id]) == text
    assert tokenizer.count(text) == len(tokens)
    assert all(0 <= token < tokenizer.vocab_size for token in tokens)


def test_tokens_of_text_are_its_bytes() -> None:
    assert BYTES.encode("aé") == [97, 0xC3, 0xA9]
    assert BYTES.decode([0xC3]) == "\ufffd"
    assert len({*range(256), BYTES.pad_id, BYTES.bos_id, BYTES.eos_id}) == BYTES.vocab_size == 259


@pytest.mark.parametrize("wrong", [-1, 259])
def test_a_number_that_is_no_token_is_refused(wrong: int) -> None:
    with pytest.raises(ValueError, match=f"token {wrong} is not allowed: a token is 0 to 258"):
        BYTES.decode([97, wrong])


def test_a_hub_tokenizer_without_pad_and_bos_uses_eos(folder: Path) -> None:
    tokenizer = load_tokenizer(str(folder))
    assert tokenizer.pad_id == tokenizer.bos_id == tokenizer.eos_id
    assert tokenizer.vocab_size == 400


def test_a_hub_tokenizer_without_an_end_is_refused(folder: Path, tmp_path: Path) -> None:
    endless = PreTrainedTokenizerFast.from_pretrained(folder)
    endless.eos_token = None
    endless.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="it has no end-of-sequence token"):
        load_tokenizer(str(tmp_path))


def test_an_absent_tokenizer_is_named_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere' cannot be loaded: (.|\n)*Give 'bytes', a folder"):
        load_tokenizer(str(tmp_path / "nowhere"))


def test_only_the_answer_and_the_end_have_labels(tokenizer: Tokenizer) -> None:
    example = Example("What is 1 + 1?", " 2")
    ids, labels = encode(example, tokenizer)
    taught = labels != IGNORED
    assert tokenizer.decode(ids[taught].tolist()) == " 2"
    assert ids[taught][-1] == tokenizer.eos_id
    assert torch.equal(ids[~taught], encode_prompt(example, tokenizer))
    assert torch.equal(ids[taught], labels[taught])


def test_spans_have_labels_when_asked_for(tokenizer: Tokenizer) -> None:
    example = MQARText(120, pairs=4).example(2)
    ids, labels = encode(example, tokenizer, learn="spans")
    spans = "".join(example.prompt[start:end] for start, end in example.spans)
    assert tokenizer.decode(labels[labels != IGNORED].tolist()) == spans + example.answer
    assert tokenizer.decode(ids.tolist()) == example.text
    assert torch.equal(ids, encode(example, tokenizer).input_ids)


def test_everything_but_the_beginning_has_labels_when_asked_for(tokenizer: Tokenizer) -> None:
    ids, labels = encode(Example("ab", " c"), tokenizer, learn="all")
    assert labels[0] == IGNORED
    assert torch.equal(labels[1:], ids[1:])


def test_an_unknown_lesson_is_refused() -> None:
    with pytest.raises(ValueError, match="learn='nothing' is not allowed"):
        encode(Example("a", "b"), BYTES, learn="nothing")


def test_padding_is_on_the_right_and_without_labels() -> None:
    short, long = encode(Example("a", "b"), BYTES), encode(Example("abc", "de"), BYTES)
    ids, labels = collate([short, long], BYTES.pad_id)
    assert ids.tolist()[0] == [257, 97, 98, 258, 256, 256, 256]
    assert labels.tolist()[0] == [-100, -100, 98, 258, -100, -100, -100]
    assert torch.equal(ids[1], long.input_ids)


def test_lengths_are_in_tokens_of_the_given_tokenizer(folder: Path) -> None:
    tokenizer = load_tokenizer(str(folder))
    for task in (Needles(700, needles=2, tokenizer=tokenizer), NewYork(700, distance=300, tokenizer=tokenizer)):
        for example in itertools.islice(task, 10):
            ids, _ = encode(example, tokenizer)
            assert 700 - 100 < len(ids) <= 700
