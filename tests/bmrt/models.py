"""Small random models in float64, with weights large enough that attention is uneven and strategies differ."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    BitNetConfig,
    BitNetForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from transformers.masking_utils import sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

if TYPE_CHECKING:
    from bmrt import BoundedCache
    from bmrt.cache.layer import BoundedLayer

VOCABULARY = 61
SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "initializer_range": 0.5,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
KINDS = ["llama", "qwen3", "bitnet", "bitnet quantised"]


def tiny(kind: str = "llama", *, dtype: torch.dtype = torch.float64, **changes: Any) -> Any:
    """A model of two layers; "bitnet quantised" has ternary weights and 8-bit activations."""
    torch.manual_seed(0)
    settings: Any = SHAPE | changes
    if kind == "llama":
        model: Any = LlamaForCausalLM(LlamaConfig(**settings))
    elif kind == "qwen3":  # a head dimension of its own, and queries and keys are normalised
        model = Qwen3ForCausalLM(Qwen3Config(**(settings | {"head_dim": 12})))
    elif kind == "mistral":  # every layer has a sliding window
        model = MistralForCausalLM(MistralConfig(**settings, sliding_window=16))
    else:
        model = BitNetForCausalLM(BitNetConfig(**settings))
    model = model.to(dtype).eval().requires_grad_(False)
    return _quantised(model) if kind == "bitnet quantised" else model


def _quantised(model: Any) -> Any:
    from transformers.integrations.bitnet import AutoBitLinear

    torch.compiler.set_stance("force_eager")  # the rounding functions are compiled otherwise, for seconds a shape
    for name, linear in list(model.named_modules()):
        if isinstance(linear, nn.Linear) and "lm_head" not in name:
            ternary: Any = AutoBitLinear(
                linear.in_features, linear.out_features, bias=False, online_quant=True, dtype=linear.weight.dtype
            )
            ternary.load_state_dict(linear.state_dict())
            model.set_submodule(name, ternary.requires_grad_(False))
    return model


def tokens(length: int, *, batch: int = 1, seed: int = 0) -> Tensor:
    return torch.randint(3, VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(seed))


def fed(model: Any, cache: BoundedCache, ids: Tensor, chunk: int, **options: Any) -> Tensor:
    """Logits of all tokens, given to the model chunk by chunk."""
    return torch.cat([model(part, past_key_values=cache, **options).logits for part in ids.split(chunk, 1)], 1)


def always_there(layer: BoundedLayer) -> bool:
    """Anchors and local window, in ascending positions, for every sequence and head."""
    budget, positions = layer.plan.budget, layer.positions
    wanted = {*range(min(budget.anchors, layer.seen)), *range(max(0, layer.seen - budget.window), layer.seen)}
    rows = positions.flatten(0, 1).tolist()
    return all(wanted <= set(row) for row in rows) and bool((positions.diff(dim=-1) > 0).all())


class Log:
    """Which positions each layer and head kept before each chunk, and the answer that this must give."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.visible: list[Tensor] = []  # by layer (B, G, N, N): what the queries of the whole sequence may look at

    def feed(self, cache: BoundedCache, ids: Tensor, chunks: list[int]) -> Tensor:
        (B, N), G = ids.shape, self.model.config.num_key_value_heads
        self.visible = [torch.zeros(B, G, N, N, dtype=torch.bool) for _ in cache.layers]
        logits, start = [], 0
        for size in chunks:
            rows = slice(start, start + size)
            for layer, visible in zip(cache.layers, self.visible, strict=True):
                if layer.held:
                    index = layer.positions[:, :, None].expand(B, G, size, -1)
                    visible[:, :, rows].scatter_(3, index, value=True)
                visible[:, :, rows, rows] = torch.ones(size, size, dtype=torch.bool).tril()
            logits.append(self.model(ids[:, rows], past_key_values=cache).logits)
            start += size
        return torch.cat(logits, 1)

    def oracle(self, ids: Tensor) -> Tensor:
        """One full forward pass without any cache, in which what was dropped is masked."""
        with _masked(self.model, self.visible):
            return self.model(ids, use_cache=False).logits


@contextmanager
def _masked(model: Any, visible: list[Tensor]) -> Iterator[None]:
    sdpa = ALL_ATTENTION_FUNCTIONS["sdpa"]

    def attend(module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **kwargs: Any) -> Any:
        mask = visible[module.layer_idx].repeat_interleave(module.num_key_value_groups, 1)
        return sdpa(module, query, key, value, mask, **kwargs)

    AttentionInterface.register("test_masked", attend)
    AttentionMaskInterface.register("test_masked", sdpa_mask)
    model.set_attn_implementation("test_masked")
    try:
        yield
    finally:
        model.set_attn_implementation("sdpa")
        del AttentionInterface._global_mapping["test_masked"]
        del AttentionMaskInterface._global_mapping["test_masked"]
