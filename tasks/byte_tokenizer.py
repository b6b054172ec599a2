"""Byte-level tokenizer: needs no training or download, and every text has exactly one encoding."""

from __future__ import annotations

from collections.abc import Iterable


class ByteTokenizer:
    """Token b is byte b of the text's UTF-8 encoding, followed by pad, bos, and eos.

    Text that is already bytes (`tasks.text`) needs no further encoding.
    """

    pad_id, bos_id, eos_id = 256, 257, 258
    vocab_size = 259

    def encode(self, text: str) -> list[int]:
        """Encode a text, without special tokens."""
        return list(text.encode("utf-8"))

    def decode(self, tokens: Iterable[int]) -> str:
        """Decode tokens; special tokens are skipped, and invalid UTF-8 becomes U+FFFD.

        Raises ValueError for a number that is not a token.
        """
        tokens = list(tokens)
        wrong = [token for token in tokens if not 0 <= token < self.vocab_size]
        if wrong:
            raise ValueError(f"token {wrong[0]} is not allowed: a token is 0 to {self.vocab_size - 1}")
        return bytes(token for token in tokens if token < self.pad_id).decode("utf-8", errors="replace")

    def count(self, text: str) -> int:
        """Return the number of tokens in the text."""
        return len(text.encode("utf-8"))
