"""Bytes are the text's own, whatever the script and whatever tokens are made of."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from lsh_bitnet.models import random_model
from lsh_bitnet.perplexity import measure_perplexity
from lsh_bitnet.text_bytes import bytes_before
from tasks.byte_tokenizer import ByteTokenizer
from tasks.tokenizer import HubTokenizer
from tests.lsh_bitnet.models import loaded, shared

TEXTS = {
    "latin": "Ein Fluß, zwei Flüsse; naïve café. " * 6,
    "cyrillic": "Внимание к тому, что сказано. " * 6,
    "chinese": "注意力机制可以选择更少的键。" * 10,
    "emoji": "a🙂b👩‍👩‍👧c🇨🇭 " * 10,
    "mixed": "x — 注意 Ω🙂\n\tß  y\u2028z " * 8,
}
texts = pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)


def hub(tokenizer: Tokenizer) -> HubTokenizer:
    return HubTokenizer(PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>"))


def byte_level(*, words: Iterable[str] = ()) -> HubTokenizer:
    """GPT-2's kind: any bytes are a token, so a character may be spread over several."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=280, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), special_tokens=["</s>"]
    )
    tokenizer.train_from_iterator(words, trainer)
    return hub(tokenizer)


def sentence_pieces() -> HubTokenizer:
    """Llama's kind: spaces are U+2581, one stands before the text, and unknown characters are spelt in bytes."""
    known = ["</s>", "<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581", "a", "b", "e", "\u2581e", "注"]
    merges = [("\u2581", "e")]
    tokenizer = Tokenizer(
        models.BPE(vocab={entry: i for i, entry in enumerate(known)}, merges=merges, byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    return hub(tokenizer)


def characters() -> HubTokenizer:
    """A token a character, in lower case and composed: what tokens spell is not what stands in the text."""
    tokenizer = Tokenizer(models.WordLevel({"</s>": 0, "<unk>": 1, "a": 2}, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return hub(tokenizer)


def every_place(tokenizer: HubTokenizer | ByteTokenizer, text: str) -> tuple[list[int], list[int]]:
    tokens = torch.tensor(tokenizer.encode(text))
    return tokens.tolist(), bytes_before(tokenizer, text, tokens, torch.arange(len(tokens) + 1)).tolist()


@texts
def test_a_token_that_is_a_byte_is_a_byte(text: str) -> None:
    for tokenizer in (ByteTokenizer(), HubTokenizer(ByT5Tokenizer(extra_ids=0)), byte_level()):
        tokens, before = every_place(tokenizer, text)
        assert len(tokens) == len(text.encode())
        assert before == list(range(len(text.encode()) + 1))


@texts
def test_merged_bytes_are_counted_with_their_token(text: str) -> None:
    tokenizer = byte_level(words=[text])
    tokens, before = every_place(tokenizer, text)
    sizes = [len(entry) for entry in tokenizer.entries(tokens)]  # its vocabulary writes a byte as a character
    assert max(sizes) > 1
    assert [b - a for a, b in itertools.pairwise(before)] == sizes
    assert before[-1] == len(text.encode())


@texts
def test_pieces_and_bytes_of_unknown_characters(text: str) -> None:
    tokenizer = sentence_pieces()
    tokens, before = every_place(tokenizer, text)
    steps = [b - a for a, b in itertools.pairwise(before)]
    spelt = [step for step, entry in zip(steps, tokenizer.entries(tokens), strict=True) if entry.startswith("<0x")]
    assert set(spelt) == {1}
    assert before[-1] == len(text.encode())


def test_pieces_of_text_have_the_bytes_of_what_they_spell() -> None:
    tokenizer = sentence_pieces()
    tokens, before = every_place(tokenizer, "a e注ß")
    assert tokenizer.entries(tokens) == ["\u2581", "a", "\u2581e", "注", "<0xC3>", "<0x9F>"]
    assert before == [0, 0, 1, 3, 6, 7, 8]


@texts
def test_normalised_text_counts_as_it_stood(text: str) -> None:
    tokens, before = every_place(characters(), text)
    assert before[-1] == len(text.encode())
    assert before == sorted(before)
    if text == TEXTS["cyrillic"]:
        assert before == [len(text[:i].encode()) for i in range(len(tokens) + 1)]


class Pairs:
    """Two characters a token: a tokenizer that only encodes and decodes."""

    pad_id, bos_id, eos_id, vocab_size = 0, 1, 2, 259

    def __init__(self, text: str) -> None:
        self.pairs = sorted({text[i : i + 2] for i in range(0, len(text), 2)})

    def encode(self, text: str) -> list[int]:
        return [3 + self.pairs.index(text[i : i + 2]) for i in range(0, len(text), 2)]

    def decode(self, tokens: Iterable[int]) -> str:
        return "".join(self.pairs[token - 3] for token in tokens)

    def count(self, text: str) -> int:
        return len(self.encode(text))


@texts
def test_any_other_tokenizer_is_asked_to_decode(text: str) -> None:
    tokenizer = Pairs(text)
    tokens = torch.tensor(tokenizer.encode(text))
    before = bytes_before(tokenizer, text, tokens, torch.arange(len(tokens) + 1))
    assert before.tolist() == [len(text[: 2 * i].encode()) for i in range(len(tokens) + 1)]


@texts
@pytest.mark.parametrize("seq_len", [2, 5, 16])
def test_perplexity_counts_the_bytes_of_what_it_predicts(text: str, seq_len: int) -> None:
    found = measure_perplexity(loaded(shared("llama")), text, seq_len=seq_len)
    windows = len(text.encode()) // seq_len
    assert found.text_bytes == found.predicted == windows * (seq_len - 1)


def test_a_tokenizer_of_another_model_is_refused() -> None:
    few = loaded(random_model("llama", vocab_size=100, pad_token_id=0, bos_token_id=1, eos_token_id=2))
    with pytest.raises(ValueError, match="token 119 is not allowed: tiny knows 100"):
        measure_perplexity(few, "swapped" * 10, seq_len=8)
