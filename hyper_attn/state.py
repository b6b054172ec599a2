"""Modules with random draws, which are part of the state and decide which keys are attended to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn


# `transformer_vq.precision.Selector` holds the same code: these two packages import neither each other nor attentions.
class Drawn(nn.Module):
    """A module whose draws are not rounded: `half()` and similar conversions may move them but keep their dtype.

    Those in `added` were not in version 1 of its state dict. A state dict without them still loads, and the module
    keeps its own.
    """

    _version = 2
    added: ClassVar[tuple[str, ...]] = ()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Drawn:
        def whole(x: Tensor) -> Tensor:
            converted = fn(x)
            narrower = converted.is_floating_point() and converted.itemsize < min(x.itemsize, torch.float32.itemsize)
            return x.to(converted.device) if narrower else converted

        return super()._apply(whole, recurse)

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        local_metadata: Mapping[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        if (local_metadata.get("version") or 1) < self._version:  # a file with only tensors has no version
            old = {prefix + name for name in self.added}
            missing_keys[:] = [key for key in missing_keys if key not in old]
