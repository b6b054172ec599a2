"""A language model that runs on any attention, with training, the long arena, and a pipeline."""

from __future__ import annotations

import pkgutil as _pkgutil
from typing import TYPE_CHECKING

import lazy_loader as _lazy

if TYPE_CHECKING:
    from lsh_v2.common.configuration import ModelConfig
    from lsh_v2.model.language_model import LSHv2Model
    from lsh_v2.model.presets import create_lsh_v2_model
    from lsh_v2.training.checkpoint import CheckpointError, load_model

__all__ = ["CheckpointError", "LSHv2Model", "ModelConfig", "create_lsh_v2_model", "load_model"]
__getattr__, __dir__, _ = _lazy.attach(
    __name__,
    {module.name for module in _pkgutil.iter_modules(__path__)},
    {
        "training.checkpoint": ["CheckpointError", "load_model"],
        "common.configuration": ["ModelConfig"],
        "model.language_model": ["LSHv2Model"],
        "model.presets": ["create_lsh_v2_model"],
    },
)
