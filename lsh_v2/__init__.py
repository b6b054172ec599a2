"""A language model on any attention: model, training, long arena, pipeline."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attentions.on_demand import on_demand

if TYPE_CHECKING:
    from lsh_v2.checkpoint import CheckpointError, load_model
    from lsh_v2.configuration import ModelConfig
    from lsh_v2.model import LSHv2Model
    from lsh_v2.presets import create_lsh_v2_model

__all__ = ["CheckpointError", "LSHv2Model", "ModelConfig", "create_lsh_v2_model", "load_model"]
__getattr__ = on_demand(
    "lsh_v2",
    checkpoint=("CheckpointError", "load_model"),
    configuration=("ModelConfig",),
    model=("LSHv2Model",),
    presets=("create_lsh_v2_model",),
)
