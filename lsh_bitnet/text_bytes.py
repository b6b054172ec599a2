"""How many bytes of a text its first tokens stand for, whatever the script and the tokenizer.

Decoding tokens does not say it: one that holds a part of a character decodes to a mark of three bytes, and many
tokenizers normalise.
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

PART = 3  # bytes by which a token may end before the character that it holds a part of


def bytes_before(
    tokenizer: Tokenizer, text: str, tokens: Int[Tensor, " n"], at: Int[Tensor, " places"]
) -> Int[Tensor, " places"]:
    """UTF-8 bytes of `text` that stand before each of the places in `tokens`, which are the text's, 0 to n.

    Exact where tokens are bytes, or pieces of text with signs for bytes and spaces (byte-level BPE, SentencePiece).
    Otherwise a character that several tokens share counts as a whole with one of them.
    """
    if isinstance(tokenizer, ByteTokenizer):
        return at.clone()
    ends = _ends(tokenizer, text, tokens) if isinstance(tokenizer, HubTokenizer) else None
    if ends is not None:
        return torch.cat((torch.zeros(1, dtype=torch.int64), torch.from_numpy(ends)))[at]
    return torch.tensor([_decoded_bytes(tokenizer, text, tokens[:place].tolist()) for place in at.tolist()])


def _ends(tokenizer: HubTokenizer, text: str, tokens: Int[Tensor, " n"]) -> np.ndarray | None:
    """Bytes of the text up to and with each token, None where the tokenizer says nothing of it."""
    spans = tokenizer.spans(text)
    by_character = None if spans is None else _character_ends(text)[[end for _, end in spans]]
    whole = len(text.encode("utf-8", "surrogatepass"))
    for lengths in _lengths(tokenizer.entries(tokens.tolist())):
        ends = np.cumsum(lengths) - (np.sum(lengths) - whole)  # a space that a tokenizer puts before a text is not its
        near = by_character is None or bool((np.abs(ends - by_character) <= PART).all())
        if whole <= np.sum(lengths) <= whole + 1 and near:
            return ends.clip(min=0)
    return None if by_character is None else np.maximum.accumulate(by_character)


def _lengths(entries: Sequence[str]) -> list[list[int]]:
    """Bytes of each token if a character of the vocabulary is a byte, and if it is itself but for signs."""
    return [
        [len(entry) for entry in entries],
        [
            1 if re.fullmatch(r"<0x[0-9A-F]{2}>", entry) else len(entry.replace("\u2581", " ").encode())
            for entry in entries
        ],
    ]


def _character_ends(text: str) -> np.ndarray:
    """Bytes before each character, and of all."""
    points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    sizes = 1 + (points >= 0x80).astype(np.int64) + (points >= 0x800) + (points >= 0x10000)
    return np.concatenate(([0], np.cumsum(sizes)))


def _decoded_bytes(tokenizer: Tokenizer, text: str, tokens: Sequence[int]) -> int:
    """Bytes of what the tokens decode to, without a last character that they hold a part of."""
    return min(len(tokenizer.decode(tokens).rstrip("\ufffd").encode()), len(text.encode()))
