"""What tasks and training ask of a tokenizer, and any Hugging Face tokenizer in that form."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol, runtime_checkable

from attentions.extras import missing_extra
from tasks.byte_tokenizer import ByteTokenizer


@runtime_checkable
class Tokenizer(Protocol):
    """Text to numbers below `vocab_size` and back; special tokens are added by whoever builds a sequence."""

    @property
    def pad_id(self) -> int:
        """Fills a batch."""
        ...

    @property
    def bos_id(self) -> int:
        """Begins a sequence."""
        ...

    @property
    def eos_id(self) -> int:
        """Ends an answer."""
        ...

    @property
    def vocab_size(self) -> int:
        """Number of tokens, special ones included."""
        ...

    def encode(self, text: str) -> list[int]:
        """Tokens of a text, without special ones."""
        ...

    def decode(self, tokens: Iterable[int]) -> str:
        """Text of tokens, special ones left out."""
        ...

    def count(self, text: str) -> int:
        """How many tokens `encode` makes."""
        ...


class HubTokenizer:
    """A Hugging Face tokenizer. Where it has no pad or bos token, eos stands in."""

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
        """The tokens as the vocabulary has them, with its own signs for bytes and spaces."""
        return self._tokenizer.convert_ids_to_tokens(list(tokens))

    def spans(self, text: str) -> list[tuple[int, int]] | None:
        """First character of each token of a text and the one behind its last; None where the tokenizer cannot say."""
        if not self._tokenizer.is_fast:
            return None
        return self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]


def load_tokenizer(name: str = "bytes") -> Tokenizer:
    """ "bytes", or a Hugging Face tokenizer by local path or hub id.

    Raises ValueError, with what to do, for one that cannot be loaded.
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
            "that is in the cache or can be downloaded"
        ) from error
