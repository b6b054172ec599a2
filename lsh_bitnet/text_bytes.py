"""Computes how many bytes of a text its first tokens represent, for any script and tokenizer.

Decoding tokens is not enough: a token with part of a character decodes to a replacement character of three bytes, and
many tokenizers normalise text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from tasks.byte_tokenizer import ByteTokenizer
from tasks.tokenizer import HubTokenizer, Tokenizer

PART = 3  # a token may end up to this many bytes before the end of its last character


def bytes_before(
    tokenizer: Tokenizer, text: str, tokens: Int[Tensor, " n"], at: Int[Tensor, " places"]
) -> Int[Tensor, " places"]:
    """Return the UTF-8 bytes of `text` before each position (0 to n) in its `tokens`.

    The count is exact if tokens are bytes, or pieces of text with markers for bytes and spaces (byte-level BPE,
    SentencePiece). Otherwise, a character that several tokens share is counted entirely for one of them.
    """
    if isinstance(tokenizer, ByteTokenizer):
        return at.clone()
    ends = _ends(tokenizer, text, tokens) if isinstance(tokenizer, HubTokenizer) else None
    if ends is not None:
        return torch.cat((torch.zeros(1, dtype=torch.int64), torch.from_numpy(ends)))[at]
    return torch.tensor([_decoded_bytes(tokenizer, text, tokens[:place].tolist()) for place in at.tolist()])


def _ends(tokenizer: HubTokenizer, text: str, tokens: Int[Tensor, " n"]) -> np.ndarray | None:
    """Return the bytes of text up to the end of each token, None if the tokenizer does not provide them."""
    spans = tokenizer.spans(text)
    by_character = None if spans is None else _character_ends(text)[[end for _, end in spans]]
    whole = len(text.encode("utf-8", "surrogatepass"))
    for lengths in _lengths(tokenizer.entries(tokens.tolist())):
        ends = np.cumsum(lengths) - (np.sum(lengths) - whole)  # exclude a space that the tokenizer adds before the text
        near = by_character is None or bool((np.abs(ends - by_character) <= PART).all())
        if whole <= np.sum(lengths) <= whole + 1 and near:
            return ends.clip(min=0)
    return None if by_character is None else np.maximum.accumulate(by_character)


def _lengths(entries: Sequence[str]) -> list[list[int]]:
    """Bytes per token if each vocabulary character is a byte, and if it is literal text apart from markers."""
    return [
        [len(entry) for entry in entries],
        [
            1 if re.fullmatch(r"<0x[0-9A-F]{2}>", entry) else len(entry.replace("\u2581", " ").encode())
            for entry in entries
        ],
    ]


def _character_ends(text: str) -> np.ndarray:
    """Return the bytes before each character, and in total."""
    points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    sizes = 1 + (points >= 0x80).astype(np.int64) + (points >= 0x800) + (points >= 0x10000)
    return np.concatenate(([0], np.cumsum(sizes)))


def _decoded_bytes(tokenizer: Tokenizer, text: str, tokens: Sequence[int]) -> int:
    """Return the bytes of the decoded tokens, excluding an incomplete last character."""
    return min(len(tokenizer.decode(tokens).rstrip("\ufffd").encode()), len(text.encode()))
