"""Tiny random models of every architecture that is promised, and prompts for them."""

from __future__ import annotations

import functools
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from attentions import build
from attentions.common.problem import problem_of
from lsh_bitnet.models import Loaded, random_model
from tasks.byte_tokenizer import ByteTokenizer

# Small enough that something is left out at 61 tokens.
SMALL: dict[str, dict[str, Any]] = {
    "bit_sampling": {"bits": 2, "window": 8, "local": 4},
    "simhash": {"bits": 2, "window": 8, "local": 4},
    "lsh_forest": {"min_candidates": 4, "max_candidates": 16, "trees": 2, "local": 4},
    "reformer": {"chunk": 8},
    "lsh_v2": {"bucket_size": 2, "local": 4, "samples": 1, "n_hashes": 1},
    "hyper": {"min_seq_len": 16, "block_size": 8, "sample_size": 8},
}
ARCHITECTURES = ("bitnet", "llama", "qwen3", "mistral")
PAD = ByteTokenizer.pad_id


@functools.cache
def shared(architecture: str) -> Any:
    """One model an architecture, which no test may leave changed."""
    return random_model(architecture)


def loaded(model: Any) -> Loaded:
    return Loaded("tiny", model, ByteTokenizer())


def tokens(rows: int = 2, length: int = 61, seed: int = 0) -> Int[Tensor, "B n"]:
    return torch.randint(0, 256, (rows, length), generator=torch.Generator().manual_seed(seed))


def padded(real: tuple[int, ...] = (61, 37), seed: int = 0) -> tuple[Int[Tensor, "B n"], Int[Tensor, "B n"]]:
    """Tokens and mask of rows padded on the left to the longest."""
    ids = tokens(len(real), max(real), seed)
    mask = (torch.arange(max(real)) >= max(real) - torch.tensor(real)[:, None]).long()
    return ids.where(mask.bool(), PAD), mask


@torch.no_grad()
def logits(model: Any, ids: Int[Tensor, "B n"], **options: Any) -> Float[Tensor, "B n V"]:
    return model(ids, **options).logits


def close(a: Tensor, b: Tensor, tolerance: float = 1e-5) -> bool:
    """Whether the relative error, by Frobenius norm, is within the tolerance."""
    return bool((a - b).norm() <= tolerance * b.norm())


def positions(mask: Int[Tensor, "B n"]) -> Int[Tensor, "B n"]:
    """Positions counted from each row's first real token, as `generate` gives them."""
    return (mask.cumsum(1) - 1).clamp(min=0)


def can(backend: str, queries: int, keys: int) -> bool:
    attention = build(backend, heads=4, head_dim=16, kv_heads=2, **SMALL.get(backend, {}))
    q, k = torch.zeros(1, 4, queries, 16), torch.zeros(1, 2, keys, 16)
    return not attention.why_not(problem_of(attention, q, k))
