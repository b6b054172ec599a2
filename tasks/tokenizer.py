"""The tokenizer interface of tasks and training, and an adapter for Hugging Face tokenizers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol, runtime_checkable

from attentions.common.extras import missing_extra
from tasks.byte_tokenizer import ByteTokenizer


@runtime_checkable
class Tokenizer(Protocol):
    """Converts text to numbers below `vocab_size` and back; callers add special tokens."""

    @property
    def pad_id(self) -> int:
        """Token that pads a batch."""
        ...

    @property
    def bos_id(self) -> int:
        """Token that begins a sequence."""
        ...

    @property
    def eos_id(self) -> int:
        """Token that ends an answer."""
        ...

    @property
    def vocab_size(self) -> int:
        """Number of tokens, including special ones."""
        ...

    def encode(self, text: str) -> list[int]:
        """Encode a text, without special tokens."""
        ...

    def decode(self, tokens: Iterable[int]) -> str:
        """Decode tokens, skipping special ones."""
        ...

    def count(self, text: str) -> int:
        """Return the number of tokens in a text."""
        ...


class HubTokenizer:
    """Adapts a Hugging Face tokenizer. If it has no pad or bos token, eos is used."""

    def __init__(self, tokenizer: Any) -> None:
        if tokenizer.eos_token_id is None:
            raise ValueError(f"tokenizer {tokenizer.name_or_path!r} is not allowed: it has no end-of-sequence token")
        self._tokenizer = tokenizer
        self.eos_id: int = tokenizer.eos_token_id
        self.bos_id: int = self.eos_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
        self.pad_id: int = self.eos_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        self.vocab_size: int = len(tokenizer)

    def encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False)

    def decode(self, tokens: Iterable[int]) -> str:
        return self._tokenizer.decode(list(tokens), skip_special_tokens=True)

    def count(self, text: str) -> int:
        return len(self.encode(text))

    def entries(self, tokens: Iterable[int]) -> list[str]:
        """Return the tokens as vocabulary entries, with the vocabulary's markers for bytes and spaces."""
        return self._tokenizer.convert_ids_to_tokens(list(tokens))

    def spans(self, text: str) -> list[tuple[int, int]] | None:
        """Return the character range of each token in a text; None if the tokenizer does not support offsets."""
        if not self._tokenizer.is_fast:
            return None
        return self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]


def load_tokenizer(name: str = "bytes") -> Tokenizer:
    """Load the tokenizer "bytes", or a Hugging Face tokenizer by local path or hub id.

    Raises ValueError, with a remedy, if it cannot be loaded.
    """
    if name == "bytes":
        return ByteTokenizer()
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        raise missing_extra("models", error) from error
    try:
        return HubTokenizer(AutoTokenizer.from_pretrained(name))
    except OSError as error:
        raise ValueError(
            f"tokenizer {name!r} cannot be loaded: {error}. Give 'bytes', a folder with tokenizer files, or a hub id "
            "that is cached or can be downloaded"
        ) from error
