"""AdamW with three parameter groups, and a learning rate that depends on the step only."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import nn

from lsh_v2.model.memory import gate_parameters

if TYPE_CHECKING:
    from lsh_v2.model.language_model import LSHv2Model
    from lsh_v2.training.configuration import TrainingConfig


def optimizer_of(model: LSHv2Model, config: TrainingConfig) -> torch.optim.AdamW:
    """Build AdamW. Only matrices decay, not norms, biases, the embedding, or gates; gates have their own rate."""
    gates = {id(p) for p in gate_parameters(model)}
    kinds: dict[str, list[nn.Parameter]] = {"matrices": [], "vectors": [], "gates": []}
    for name, parameter in model.named_parameters():
        plain = parameter.ndim < 2 or name.startswith("embedding")
        kinds["gates" if id(parameter) in gates else "vectors" if plain else "matrices"].append(parameter)
    rates = {"matrices": config.learning_rate, "vectors": config.learning_rate, "gates": config.gate_learning_rate}
    groups = [
        {"params": kinds[k], "peak": rates[k], "weight_decay": config.weight_decay if k == "matrices" else 0.0}
        for k in kinds
        if kinds[k]
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.95))


def set_rates(optimizer: torch.optim.Optimizer, step: int, steps: int, warmup: int) -> float:
    """Set each group's rate for `step` (from 0): linear warm-up, then cosine decay to a tenth. Returns the factor."""
    if step < warmup:
        share = (step + 1) / warmup
    else:
        share = 0.55 + 0.45 * math.cos(math.pi * (step - warmup) / max(steps - warmup, 1))
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * share
    return share
