"""Small models in float64, a prime number of everything, and a disk without room, for tests of the language model."""

from __future__ import annotations

import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from lsh_v2.common.configuration import ModelConfig, model_config
from lsh_v2.model.language_model import LSHv2Model

VOCABULARY, BATCH = 37, 3

SMALL: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "d_model": 48,
    "n_heads": 6,
    "n_kv_heads": 2,
    "n_layers": 4,
    "weight_tied_layers": 2,
    "feed_forward_dim": 17,
    "max_seq_len": 512,
    "bucket_size": 8,
    "attention": "flash",
    "rope_base": 1000.0,
}


def small_config(**overrides: Any) -> ModelConfig:
    return model_config(**(SMALL | overrides))


def small_model(**overrides: Any) -> LSHv2Model:
    """A model in float64 and eval mode whose weights, gates and halting are not those of a start."""
    model = LSHv2Model(small_config(**overrides)).double().eval()
    draw = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=draw, dtype=torch.float64)
    return model


def token_ids(length: int, *, batch: int = BATCH, seed: int = 1) -> Tensor:
    return torch.randint(0, VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(seed))


def logits(model: LSHv2Model, ids: Tensor) -> Tensor:
    with torch.no_grad():
        return model(ids)["logits"]


@contextmanager
def no_room(limit: int) -> Iterator[None]:
    """No file can grow beyond `limit` bytes here, as on a disk that is full."""
    limits, ignored = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
