"""Generates text token by token, from the model's decoding state if it has one, else by rerunning the prefix."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from attentions.common.settings import require

if TYPE_CHECKING:
    from lsh_v2.model.language_model import LSHv2Model


@torch.no_grad()
def generate(
    model: LSHv2Model,
    prompt: Int[Tensor, "B N"],
    *,
    max_new_tokens: int,
    first: Int[Tensor, " B"] | None = None,
    temperature: float = 0.0,
    top_k: int | None = None,
    stop: int | None = None,
    seed: int = 0,
) -> Int[Tensor, "B T"]:
    """Return the tokens that follow `prompt`, at most `max_new_tokens`.

    `temperature` 0 takes the most likely token; `top_k` samples among that many. After `stop`, a row repeats it, and
    generation ends when every row has stopped. `first` is the first real position of each left-padded row: rows of
    equal length are generated together, without their padding. The model's mode is restored. Raises ValueError for an
    encoder, a row without tokens, and invalid settings.
    """
    require(model.config.causal, "causal", model.config.causal, "true to generate")
    require(max_new_tokens >= 1, "max_new_tokens", max_new_tokens, "an integer of at least 1")
    require(0 <= temperature < math.inf, "temperature", temperature, "a finite number of at least 0")
    require(top_k is None or top_k >= 1, "top_k", top_k, "None or an integer of at least 1")
    if first is not None:
        settings = {"max_new_tokens": max_new_tokens, "temperature": temperature, "top_k": top_k, "stop": stop}
        return _padded(model, prompt, first, **settings, seed=seed)
    require(prompt.shape[1] >= 1, "prompt length", prompt.shape[1], "at least 1")
    draw = torch.Generator(prompt.device).manual_seed(seed)
    training = model.training
    model.eval()
    try:
        stream, given, tokens = model.stream(len(prompt)), prompt, prompt[:, :0]
        done = torch.zeros(len(prompt), dtype=torch.bool, device=prompt.device)
        for _ in range(max_new_tokens):
            if stream is not None:
                logits = stream.extend(given)[:, -1]
            else:
                logits = model(torch.cat((prompt, tokens), dim=1), logits_to_keep=1)["logits"][:, -1]
            given = choose(logits, temperature, top_k, draw)[:, None]
            if stop is not None:
                given = given.masked_fill(done[:, None], stop)
                done = done | (given[:, 0] == stop)
            tokens = torch.cat((tokens, given), dim=1)
            if done.all():
                break
        return tokens
    finally:
        model.train(training)


def _padded(
    model: LSHv2Model, prompt: Int[Tensor, "B N"], first: Int[Tensor, " B"], **settings: Any
) -> Int[Tensor, "B T"]:
    """Generate rows of equal length together; rows that end early repeat their last token, which is `stop`."""
    length = prompt.shape[1]
    fits = tuple(first.shape) == (len(prompt),) and bool(((first >= 0) & (first < length)).all())
    require(fits, "first", first.tolist(), f"{len(prompt)} integers from 0 to {length - 1}")
    rows: list[tuple[Tensor, Tensor]] = []
    for begin in first.unique().tolist():
        index = (first == begin).nonzero()[:, 0].to(prompt.device)
        rows.append((index, generate(model, prompt[index, begin:], **settings)))
    longest = max(tokens.shape[1] for _, tokens in rows)
    out = prompt.new_zeros(len(prompt), longest)
    for index, tokens in rows:
        out[index] = torch.cat((tokens, tokens[:, -1:].expand(-1, longest - tokens.shape[1])), dim=1)
    return out


def choose(
    logits: Float[Tensor, "B V"], temperature: float, top_k: int | None, draw: torch.Generator
) -> Int[Tensor, " B"]:
    """Pick one token per row."""
    if temperature == 0:
        return logits.argmax(-1)
    if top_k is not None:
        least = logits.topk(min(top_k, logits.shape[-1])).values[:, -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    return torch.multinomial(torch.softmax(logits.float() / temperature, dim=-1), 1, generator=draw)[:, 0]
