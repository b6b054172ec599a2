"""Training of the language model: configuration, data, checkpoints, evaluation, the loop."""

from __future__ import annotations

from attentions.extras import missing_extra

try:
    import accelerate  # noqa: F401  # the loop, and every module below that imports it
    import tensorboard  # noqa: F401  # where the loop always writes its figures
except ImportError as error:
    raise missing_extra("models", error) from error

from lsh_v2.checkpoint import CheckpointError, load_model
from lsh_v2.training.configuration import TrainingConfig, load_training_config
from lsh_v2.training.trainer import Trainer

__all__ = ["CheckpointError", "Trainer", "TrainingConfig", "load_model", "load_training_config"]
