"""Rejects models with attention features that the attentions of this project do not compute, naming the feature.

Features are detected in two places: the configuration and modules before a swap, and the arguments of a layer's call.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from transformers import PreTrainedModel

# Keys of a configuration that must be unset, and the feature that each one requests.
CONFIGURED: Mapping[str, str] = {
    "attn_logit_softcapping": "capped scores",
    "alibi": "score biases by distance (ALiBi)",
    "relative_attention_num_buckets": "learned score biases by distance",
    "is_encoder_decoder": "cross-attention to an encoder",
    "use_bidirectional_attention": "tokens that attend to later tokens",
}
# Arguments of a layer's call that request a feature.
ASKED: Mapping[str, str] = {
    "softcap": "capped scores",
    "s_aux": "attention sinks",
    "sinks": "attention sinks",
    "position_bias": "score biases",
    "attention_bias": "score biases",
    "alibi": "score biases",
    "head_mask": "masks by head",
    "layer_head_mask": "masks by head",
    "indices": "keys that the layer selects",
    "block_indices": "keys that the layer selects",
    "cu_seqlens": "packed sequences",
    "cu_seq_lens_q": "packed sequences",
    "cu_seq_lens_k": "packed sequences",
    "seq_idx": "packed sequences",
    "cache": "paged caches",
    "output_attentions": "attention weights",
}
# Tensors that layers pass on but no attention reads.
UNREAD = ("position_ids", "cache_position", "num_items_in_batch", "labels", "token_type_ids", "mm_token_type_ids")


def require_plain(model: PreTrainedModel) -> None:
    """Raise ValueError, naming the feature, for a model with attention features that a swap would drop."""
    for config in (model.config, model.config.get_text_config()):
        for name, what in CONFIGURED.items():
            value = getattr(config, name, None)
            if value not in (None, False, 0):
                _refuse(f"{type(model).__name__} with {name}={value!r}", what)
    for path, module in model.named_modules():
        if isinstance(getattr(module, "sinks", None), torch.Tensor):
            _refuse(f"{type(model).__name__} with {path}.sinks", "attention sinks")


def require_known(extras: Mapping[str, Any]) -> None:
    """Raise ValueError for an argument of a layer's call that these attentions would ignore."""
    if extras.get("is_causal") is False:
        _refuse("is_causal=False", "tokens that attend to later tokens")
    for name, value in extras.items():
        if value is None or value is False:
            continue
        if name in ASKED:
            _refuse(name, ASKED[name])
        if isinstance(value, torch.Tensor) and name not in UNREAD:
            _refuse(name, "additional tensors")


def _refuse(name: str, what: str) -> None:
    raise ValueError(f"{name} is not allowed: these attentions do not support {what}")
