"""A language model on any attention: model, training, long arena, pipeline."""

from __future__ import annotations

import pkgutil as _pkgutil
from typing import TYPE_CHECKING

import lazy_loader as _lazy

if TYPE_CHECKING:
    from lsh_v2.checkpoint import CheckpointError, load_model
    from lsh_v2.configuration import ModelConfig
    from lsh_v2.model import LSHv2Model
    from lsh_v2.presets import create_lsh_v2_model

__all__ = ["CheckpointError", "LSHv2Model", "ModelConfig", "create_lsh_v2_model", "load_model"]
__getattr__, __dir__, _ = _lazy.attach(
    __name__,
    {module.name for module in _pkgutil.iter_modules(__path__)},
    {
        "checkpoint": ["CheckpointError", "load_model"],
        "configuration": ["ModelConfig"],
        "model": ["LSHv2Model"],
        "presets": ["create_lsh_v2_model"],
    },
)
