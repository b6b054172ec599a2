"""AdamW with three kinds of weights, and a learning rate that is a function of the step alone."""

from __future__ import annotations

import math

import torch
from torch import nn

from lsh_v2.memory import gate_parameters
from lsh_v2.model import LSHv2Model
from lsh_v2.training.configuration import TrainingConfig


def optimizer_of(model: LSHv2Model, config: TrainingConfig) -> torch.optim.AdamW:
    """Matrices decay; norms, biases and the embedding do not; memory gates have a rate of their own and do not."""
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
    """Give each group its rate for `step`, counted from 0: linear warm-up, then a cosine to a tenth; the share."""
    if step < warmup:
        share = (step + 1) / warmup
    else:
        share = 0.55 + 0.45 * math.cos(math.pi * (step - warmup) / max(steps - warmup, 1))
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * share
    return share
