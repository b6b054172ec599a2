"""Converts prompts to tokens and back, with one beginning-of-sequence token and the chat template, if any."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from jinja2 import TemplateError

from attentions.common.settings import require
from tasks.byte_tokenizer import ByteTokenizer

MARK = "\ue0f0\ue0f1\ue0f2"  # private-use characters that no template contains
BROKEN = "\ufffd"  # the replacement character for an incomplete character


class Prompts:
    """Splits a prompt into the tokens of its context and of its question.

    `tokenizer` is a Hugging Face tokenizer or `tasks.byte_tokenizer.ByteTokenizer`. If it has a chat template, context
    and question become one user message.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self._bytes = isinstance(tokenizer, ByteTokenizer)
        bos = tokenizer.bos_id if self._bytes else tokenizer.bos_token_id
        self._bos = [] if bos is None else [bos]
        self.eos: int | None = tokenizer.eos_id if self._bytes else tokenizer.eos_token_id

    def split(self, context: str, question: str) -> tuple[list[int], list[int]]:
        """Return the tokens before the question, and those of the question and whatever a template adds after it.

        Raises ValueError for a chat template that changes the message beyond surrounding whitespace, and for text that
        no tokenizer can encode.
        """
        if not getattr(self.tokenizer, "chat_template", None):
            return self._bos + self._encode(context), self._encode(question)
        before, after = self._around(MARK)
        message = context + question
        text = self._templated(message)
        body = text[len(before) : len(text) - len(after)]
        if not text.startswith(before) or not text.endswith(after) or body.strip() != message.strip():
            raise ValueError(
                "the tokenizer's chat template changes messages, so the question cannot be located in them"
            )
        # Some templates strip the message.
        lost = len(message) - len(message.lstrip()) if len(body) < len(message) and body == body.lstrip() else 0
        end = len(before) + min(max(0, len(context) - lost), len(body))
        return self._encode(text[:end]), self._encode(text[end:])  # the template adds its own BOS token

    def _around(self, mark: str) -> tuple[str, str]:
        """Return what the chat template puts before and after a message."""
        before, *after = self._templated(mark).split(mark)
        if len(after) != 1:
            raise ValueError(
                f"the tokenizer's chat template repeats a message {len(after)} times; it must contain it once"
            )
        return before, after[0]

    def _templated(self, message: str) -> str:
        messages = [{"role": "user", "content": message}]
        try:
            return self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        except TemplateError as error:
            raise ValueError(f"the tokenizer's chat template rejects a user message: {error}") from error

    def decode(self, tokens: Sequence[int]) -> str:
        """Decode generated tokens, without special tokens."""
        if self._bytes:
            return self.tokenizer.decode(tokens)
        return self.tokenizer.decode(list(tokens), skip_special_tokens=True)

    def count(self, text: str) -> int:
        """Return the number of tokens in a text."""
        return len(self._encode(text))

    def middle_cut(self, text: str, tokens: int) -> str:
        """Shorten a text to at most `tokens` tokens by cutting out the middle.

        The result may be shorter, if the cut text would otherwise encode to more tokens; no character is split.
        """
        require(tokens >= 0, "tokens", tokens, "an integer of at least 0")
        ids = self._encode(text)
        if len(ids) <= tokens:
            return text
        room = tokens
        while True:
            half = room // 2
            cut = self.decode(ids[:half]).rstrip(BROKEN) + self.decode(ids[len(ids) - half :]).lstrip(BROKEN)
            if (length := self.count(cut)) <= tokens:
                return cut
            room = min(room - 1, room * tokens // length)

    def _encode(self, text: str) -> list[int]:
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            wrong = text[error.start]
            raise ValueError(f"a text holds {wrong!r}, a lone surrogate, which no tokenizer can read") from error
        encode: Callable[..., list[int]] = self.tokenizer.encode
        return encode(text) if self._bytes else encode(text, add_special_tokens=False)
