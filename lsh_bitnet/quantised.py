"""BitNet's linears in a model that is built here: ternary weights and 8-bit activations, as transformers computes them.

A hub checkpoint brings its own; a model made from a configuration has plain `nn.Linear`. Ma et al. 2024, "The era of
1-bit LLMs", https://arxiv.org/abs/2402.17764.
"""

from __future__ import annotations

from typing import Any

from torch import nn

# What `config.json` must say for `from_pretrained` to build the same linears again and to quantise as it runs.
ONLINE: dict[str, Any] = {
    "quant_method": "bitnet",
    "linear_class": "autobitlinear",
    "quantization_mode": "online",
    "modules_to_not_convert": ["lm_head"],
}


def quantise(model: nn.Module, *, keep: tuple[str, ...] = ("lm_head",)) -> nn.Module:
    """`model` with every `nn.Linear` but those whose name holds one of `keep` made an `AutoBitLinear`, in place.

    Weights stay as they are in float and are rounded to three values, and activations to 8 bits, at each forward;
    gradients pass straight through, so the model can be trained.
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
