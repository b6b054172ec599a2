"""Prompts to tokens and back: one beginning-of-sequence token, and a chat template around it all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tasks.byte_tokenizer import ByteTokenizer


class Prompts:
    """A tokenizer that splits a prompt into its context and its question.

    `tokenizer`: a Hugging Face tokenizer or `tasks.byte_tokenizer.ByteTokenizer`. Where it has a chat template, context
    and question become one user message.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._bytes = isinstance(tokenizer, ByteTokenizer)
        bos = tokenizer.bos_id if self._bytes else tokenizer.bos_token_id
        self._bos = [] if bos is None else [bos]
        self.eos: int | None = tokenizer.eos_id if self._bytes else tokenizer.eos_token_id

    def split(self, context: str, question: str) -> tuple[list[int], list[int]]:
        """Tokens of what comes before the question, and of the question with whatever a template puts after it."""
        if not getattr(self._tokenizer, "chat_template", None):
            return self._bos + self._encode(context), self._encode(question)
        message = [{"role": "user", "content": context + question}]
        text: str = self._tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
        end = text.find(context) + len(context)
        if end < len(context):  # a template that changes its content
            end = text.rfind(question)
        return self._encode(text[:end]), self._encode(text[end:])  # the template writes its own beginning of sequence

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of generated tokens, special ones left out."""
        if self._bytes:
            return self._tokenizer.decode(tokens)
        return self._tokenizer.decode(list(tokens), skip_special_tokens=True)

    def count(self, text: str) -> int:
        """How many tokens a text has."""
        return len(self._encode(text))

    def middle_cut(self, text: str, tokens: int) -> str:
        """A text of at most so many tokens: its first and its last half, the middle left out."""
        ids = self._encode(text)
        half = tokens // 2
        return text if len(ids) <= tokens else self.decode(ids[:half]) + self.decode(ids[len(ids) - half :])

    def _encode(self, text: str) -> list[int]:
        encode: Callable[..., list[int]] = self._tokenizer.encode
        return encode(text) if self._bytes else encode(text, add_special_tokens=False)
