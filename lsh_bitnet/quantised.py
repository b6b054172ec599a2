"""Adds BitNet's linears to a newly built model: ternary weights and 8-bit activations, as in transformers.

A hub checkpoint already has them; a model built from a configuration has plain `nn.Linear`. Ma et al. 2024, "The era of
1-bit LLMs", https://arxiv.org/abs/2402.17764.
"""

from __future__ import annotations

from typing import Any

from torch import nn

# Entries that `config.json` needs so that `from_pretrained` builds the same linears and quantises online.
ONLINE: dict[str, Any] = {
    "quant_method": "bitnet",
    "linear_class": "autobitlinear",
    "quantization_mode": "online",
    "modules_to_not_convert": ["lm_head"],
}


def quantise(model: nn.Module, *, keep: tuple[str, ...] = ("lm_head",)) -> nn.Module:
    """Replace every `nn.Linear` of `model` in place by an `AutoBitLinear`, except those with a name containing `keep`.

    Weights stay in float and are rounded to three values at each forward pass, and activations to 8 bits; gradients
    pass straight through, so the model can be trained.
    """
    from transformers.integrations.bitnet import AutoBitLinear

    for name, module in list(model.named_modules()):
        if type(module) is not nn.Linear or any(part in name for part in keep):
            continue
        new = AutoBitLinear(
            module.in_features,
            module.out_features,
            bias=module.bias is not None,
            device=module.weight.device,
            dtype=module.weight.dtype,
            online_quant=True,
        )
        new.load_state_dict(module.state_dict())
        model.set_submodule(name, new.train(module.training))
    return model
