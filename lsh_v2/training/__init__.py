"""Training of the language model: configuration, data, checkpoints, evaluation, and the training loop."""

from __future__ import annotations

import pkgutil as _pkgutil
from typing import TYPE_CHECKING

import lazy_loader as _lazy

from attentions.common.extras import missing_extra

try:
    import accelerate  # noqa: F401  # used by the loop and several modules below
    import tensorboard  # noqa: F401  # the loop always logs to it
except ImportError as error:
    raise missing_extra("models", error) from error

if TYPE_CHECKING:
    from lsh_v2.training.checkpoint import CheckpointError, load_model
    from lsh_v2.training.configuration import TrainingConfig, load_training_config
    from lsh_v2.training.trainer import Trainer

__all__ = ["CheckpointError", "Trainer", "TrainingConfig", "load_model", "load_training_config"]
__getattr__, __dir__, _ = _lazy.attach(
    __name__,
    {module.name for module in _pkgutil.iter_modules(__path__)},
    {
        "checkpoint": ["CheckpointError", "load_model"],
        "configuration": ["TrainingConfig", "load_training_config"],
        "trainer": ["Trainer"],
    },
)
