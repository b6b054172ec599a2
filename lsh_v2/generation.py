"""Text from a model, token by token; from its decoding state where it has one, else by running the prefix again."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from attentions.base import require
from lsh_v2.model import LSHv2Model


@torch.no_grad()
def generate(
    model: LSHv2Model,
    prompt: Int[Tensor, "B N"],
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_k: int | None = None,
    stop: int | None = None,
    seed: int = 0,
) -> Int[Tensor, "B T"]:
    """The tokens that follow `prompt`, at most `max_new_tokens`.

    `temperature` 0 takes the likeliest; `top_k` draws among so many. After `stop` a row repeats it, and generation
    ends when every row has stopped. The model's mode is left as it was. Raises ValueError for an encoder.
    """
    require(model.config.causal, "causal", model.config.causal, "true to generate")
    require(max_new_tokens >= 1, "max_new_tokens", max_new_tokens, "an integer of at least 1")
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


def choose(
    logits: Float[Tensor, "B V"], temperature: float, top_k: int | None, draw: torch.Generator
) -> Int[Tensor, " B"]:
    """One token for each row."""
    if temperature == 0:
        return logits.argmax(-1)
    if top_k is not None:
        least = logits.topk(min(top_k, logits.shape[-1])).values[:, -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    return torch.multinomial(torch.softmax(logits.float() / temperature, dim=-1), 1, generator=draw)[:, 0]
