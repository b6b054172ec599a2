"""Encodes examples as tensors of tokens and labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

if TYPE_CHECKING:
    from tasks.example import Example
    from tasks.tokenizer import Tokenizer

IGNORED = -100  # cross_entropy's default ignore_index
SPECIAL = 2  # bos before an example and eos after it


class Encoded(NamedTuple):
    """Tokens of one example, or of a batch padded on the right.

    `labels[i]` is `input_ids[i]` if it should be learned and -100 otherwise. Labels are not shifted, as Hugging Face
    models expect.
    """

    input_ids: Int[Tensor, "*B n"]
    labels: Int[Tensor, "*B n"]


def encode(example: Example, tokenizer: Tokenizer, *, learn: str = "answer") -> Encoded:
    """Encode bos, prompt, answer, and eos; `learn` selects what has labels.

    "answer": the answer and eos. "spans": these and the example's spans. "all": everything after bos.
    The prompt is split at its spans and its end before tokenization, so that no token crosses a label boundary.
    Raises ValueError for another `learn`.
    """
    if learn not in ("answer", "spans", "all"):
        raise ValueError(f"learn={learn!r} is not allowed: it must be 'answer', 'spans' or 'all'")
    tokens, taught = [tokenizer.bos_id], [False]
    for piece, is_span in _pieces(example):
        new = tokenizer.encode(piece)
        tokens += new
        taught += [learn == "all" or (is_span and learn == "spans")] * len(new)
    answer = [*tokenizer.encode(example.answer), tokenizer.eos_id]
    input_ids = torch.tensor(tokens + answer)
    return Encoded(input_ids, input_ids.where(torch.tensor(taught + [True] * len(answer)), IGNORED))


def encode_prompt(example: Example, tokenizer: Tokenizer) -> Int[Tensor, " n"]:
    """Encode bos and the prompt, split as in `encode`, to generate an answer from."""
    pieces = (tokenizer.encode(piece) for piece, _ in _pieces(example))
    return torch.tensor([tokenizer.bos_id, *(token for piece in pieces for token in piece)])


def collate(examples: Sequence[Encoded], pad_id: int) -> Encoded:
    """Collate a batch, padded on the right to its longest example; padding has no labels."""
    ids, labels = ([example[part] for example in examples] for part in (0, 1))
    return Encoded(pad_sequence(ids, True, pad_id), pad_sequence(labels, True, IGNORED))


def _pieces(example: Example) -> list[tuple[str, bool]]:
    """Return the pieces of the prompt in order, each with whether it is a span."""
    pieces, end = [], 0
    for start, stop in example.spans:
        pieces += [(example.prompt[end:start], False), (example.prompt[start:stop], True)]
        end = stop
    return [*pieces, (example.prompt[end:], False)]
