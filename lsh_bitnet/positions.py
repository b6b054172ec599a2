"""Derives position ids of left-padded rows from the mask, if a call passes none.

Rotary positions are relative, so exact attention does not depend on where a row begins. Hash codes do: they are
computed from rotated queries and keys. `generate` counts positions from a row's first real token; a forward call
without position ids counts padding too.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

PREFIX = "attentions_"  # prefix of the names under which this project's attentions are registered


def takes_positions(decoder: nn.Module) -> bool:
    """Whether a decoder has rotary positions that can be passed in; learned ones would change the model's output."""
    known = inspect.signature(decoder.forward).parameters
    return hasattr(decoder, "rotary_emb") and {"position_ids", "attention_mask"} <= known.keys()


def derive_positions(
    decoder: nn.Module, arguments: tuple[Any, ...], named: Mapping[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Forward pre-hook of a decoder: returns the call with position ids, or None to leave it unchanged.

    Raises ValueError for two-dimensional masks with values other than 0 and 1, such as packed-sequence numbers or
    additive terms, which transformers would treat as real tokens.
    """
    given = {**dict(zip(inspect.signature(decoder.forward).parameters, arguments, strict=False)), **named}
    mask = given.get("attention_mask")
    if not (isinstance(mask, Tensor) and mask.ndim == 2) or not str(_implementation(decoder)).startswith(PREFIX):
        return None
    if bool(((mask != 0) & (mask != 1)).any()):
        raise ValueError(
            "this attention_mask is not allowed: it must hold 1 for a real token and 0 for padding; packed-sequence "
            "ids and additive score masks are not supported"
        )
    if given.get("position_ids") is not None or bool(mask[:, :1].all()):
        return None
    tokens = next(x for x in (given.get("input_ids"), given.get("inputs_embeds")) if x is not None).shape[1]
    return (), {**given, "position_ids": (mask.long().cumsum(1) - 1).clamp(min=0)[:, -tokens:]}


def _implementation(decoder: nn.Module) -> Any:
    config: Any = decoder.config
    return config._attn_implementation
