"""Inputs from a user's function, named `package.module:function`.

`function(case, variant)` returns (q, k, v) on the CPU, or x if `case.level` is "layer", for variants 0, 1 and 2. For
variant 2, the calibration sample, it gets the case with n cut to 16,384 and mode "forward". This module copies the
shared first half of variant 1 from variant 0, so the function need not handle it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from jaxtyping import Float
from torch import Tensor

from harness.common.import_path import import_path
from harness.common.source_hash import source_hash
from harness.inputs.base import CALIBRATION, InputKind, Inputs, Sizes, sizes_of

if TYPE_CHECKING:
    from harness.common.rows import Case


@dataclass(frozen=True)
class Custom(InputKind):
    """Inputs from the function at `path`. Raises ValueError if it cannot be found or returns other shapes."""

    path: str

    def make(self, case: Case, variant: int) -> Inputs:
        return Inputs(*self._shared_half(case, variant, layer=False), meta={"function": self.path})

    def hidden(self, case: Case, variant: int) -> Float[Tensor, "B M X"]:
        return self._shared_half(case, variant, layer=True)[0]

    def why_not(self, case: Case) -> str:
        try:
            self._function()
        except ValueError as error:
            return str(error)
        return ""

    def identity(self) -> str:
        module = self.path.partition(":")[0]
        try:
            return source_hash(module)
        except ValueError:
            return module  # a standard library module, whose version is part of the environment

    def _function(self) -> Callable[[Case, int], object]:
        found = import_path(self.path)
        if not callable(found):
            raise ValueError(f"{self.path!r} is not allowed: it must be a function, not {found!r}")
        return cast("Callable[[Case, int], object]", found)

    def _shared_half(self, case: Case, variant: int, *, layer: bool) -> list[Tensor]:
        sizes = sizes_of(case, variant)
        drawn = self._call(case, variant, sizes, layer=layer)
        if variant != 1:
            return drawn
        joined = []
        for first, second in zip(self._call(case, 0, sizes, layer=layer), drawn, strict=True):
            shared = max(0, sizes.shared - (sizes.positions - first.shape[-2]))
            joined.append(second.clone())
            joined[-1][..., :shared, :] = first[..., :shared, :]
        return joined

    def _call(self, case: Case, variant: int, sizes: Sizes, *, layer: bool) -> list[Tensor]:
        if variant == CALIBRATION:
            case = case.model_copy(update={"n": sizes.positions, "mode": "forward"})
        found = self._function()(case, variant)
        parts = [found] if layer else [found.q, found.k, found.v] if isinstance(found, Inputs) else found
        wanted = wanted_shapes(sizes, layer=layer)
        tensors = list(parts) if isinstance(parts, list | tuple) else [parts]
        shapes = [tuple(part.shape) if isinstance(part, Tensor) else type(part).__name__ for part in tensors]
        if shapes != wanted:
            raise ValueError(f"{self.path} returned {shapes}; it must return tensors of {wanted}")
        return [part.detach().cpu().to(sizes.dtype) for part in tensors if isinstance(part, Tensor)]


def wanted_shapes(sizes: Sizes, *, layer: bool) -> list[tuple[int, ...]]:
    """Return the shape of x, or the shapes of q, k and v."""
    if layer:
        return [(sizes.batch, sizes.positions, sizes.width)]
    return [
        (sizes.batch, sizes.heads, sizes.queries, sizes.head_dim),
        (sizes.batch, sizes.kv_heads, sizes.positions, sizes.head_dim),
        (sizes.batch, sizes.kv_heads, sizes.positions, sizes.value_dim),
    ]
