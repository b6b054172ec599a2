"""Measures the perplexity of a causal language model on a text, in windows, with exact counts.

The text is tokenized as one sequence and cut into windows that do not overlap; the remainder is dropped. In each
window, every token except the first is predicted from the tokens before it in the window.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Int
from torch import Tensor

from lsh_bitnet.models import Loaded, require_length
from lsh_bitnet.text_bytes import bytes_before


@dataclass(frozen=True)
class Perplexity:
    """`nats` summed over `predicted` of `tokens` tokens; `text_bytes` are the bytes of the predicted ones."""

    nats: float
    predicted: int
    tokens: int
    text_bytes: int

    @property
    def perplexity(self) -> float:
        """exp of the mean loss per token in nats; infinite if it overflows a float."""
        mean = self.nats / self.predicted
        return math.exp(mean) if mean < 700 else math.inf

    @property
    def bits_per_byte(self) -> float:
        """Loss in bits per byte of text, comparable between tokenizers."""
        return self.nats / math.log(2) / self.text_bytes if self.text_bytes else math.inf


def _tokens_of(loaded: Loaded, text: str, seq_len: int) -> Int[Tensor, " n"]:
    """Tokenize a text. Raises ValueError if it is shorter than one window, or if windows are too long for the model."""
    if seq_len < 2:
        raise ValueError(f"seq_len={seq_len} is not allowed: a window needs at least 2 tokens")
    require_length(loaded, seq_len)
    tokens = torch.tensor(loaded.tokenizer.encode(text), dtype=torch.int64)
    if len(tokens) < seq_len:
        raise ValueError(f"seq_len={seq_len} is not allowed: the text has only {len(tokens)} tokens")
    if (most := int(tokens.max())) >= (known := loaded.model.config.get_text_config().vocab_size):
        raise ValueError(
            f"token {most} is not allowed: {loaded.name} knows {known}; the tokenizer belongs to another model"
        )
    return tokens


def measure_perplexity(
    loaded: Loaded, text: str, *, seq_len: int = 128, batch_size: int = 2, max_batches: int | None = None
) -> Perplexity:
    """Measure the perplexity of the model, including a swapped attention, on the first `max_batches` batches.

    Raises ValueError for a batch size below one and for invalid windows.
    """
    if batch_size < 1 or (max_batches is not None and max_batches < 1):
        raise ValueError(f"batch_size={batch_size}, max_batches={max_batches} are not allowed: at least 1")
    tokens = _tokens_of(loaded, text, seq_len)
    windows = tokens[: len(tokens) // seq_len * seq_len].view(-1, seq_len)
    batches = windows.split(batch_size)[:max_batches]
    nats = 0.0
    with torch.no_grad():
        for batch in batches:
            nats += _nats(loaded, batch.to(loaded.model.device))
    read = sum(map(len, batches))
    starts = torch.arange(read) * seq_len
    before = bytes_before(loaded.tokenizer, text, tokens, torch.cat((starts + 1, starts + seq_len)))
    text_bytes = int((before[read:] - before[:read]).sum())
    return Perplexity(nats, read * (seq_len - 1), read * seq_len, text_bytes)


def _nats(loaded: Loaded, batch: Int[Tensor, "B n"]) -> float:
    logits = loaded.model(batch, use_cache=False).logits[:, :-1].float()
    return F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten(), reduction="sum").double().item()
