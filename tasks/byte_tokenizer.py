"""Bytes as tokens: nothing to train, nothing to download, and every text has exactly one encoding."""

from __future__ import annotations

from collections.abc import Iterable


class ByteTokenizer:
    """Token b is byte b of the text's UTF-8; then come pad, bos and eos.

    Text that is bytes already (`tasks.text`) is therefore encoded as it stands.
    """

    pad_id, bos_id, eos_id = 256, 257, 258
    vocab_size = 259

    def encode(self, text: str) -> list[int]:
        """The tokens of a text, without special ones."""
        return list(text.encode("utf-8"))

    def decode(self, tokens: Iterable[int]) -> str:
        """The text of tokens; special tokens are left out, and bytes that are no UTF-8 become U+FFFD.

        Raises ValueError for a number that is no token.
        """
        tokens = list(tokens)
        wrong = [token for token in tokens if not 0 <= token < self.vocab_size]
        if wrong:
            raise ValueError(f"token {wrong[0]} is not allowed: a token is 0 to {self.vocab_size - 1}")
        return bytes(token for token in tokens if token < self.pad_id).decode("utf-8", errors="replace")

    def count(self, text: str) -> int:
        """How many tokens `encode` makes of the text."""
        return len(text.encode("utf-8"))
