"""The user's own q, k and v, from a `.safetensors` file with those three names (and x for layers).

q is (B, H, M, D), k (B, G, M, D), v (B, G, M, E) and x (B, M, H·D), with at least as many sequences and positions
as a case asks for: the first ones are taken. In decode mode the query is q's at the new position.

A file holds one set of data, so variant 1 has the later half of the positions in reverse order and with v (or x)
negated. The calibration sample is what comes after the positions that are attended to, or else the same positions
of further sequences; a file that has neither cannot calibrate, and says so.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from torch import Tensor

from harness.inputs.base import CALIBRATION, InputKind, Inputs, Sizes, sizes_of
from harness.rows import Case


@dataclass(frozen=True)
class Region:
    """The sequences and positions of the file that a variant takes."""

    rows: slice
    positions: slice


@dataclass(frozen=True)
class File(InputKind):
    """Inputs from the file at `path`. Raises ValueError where it is unreadable or its shapes do not fit."""

    path: str

    def make(self, case: Case, variant: int) -> Inputs:
        self._require(case)
        sizes = sizes_of(case, variant)
        q, k, v = (self._read(name, case, variant) for name in "qkv")
        return Inputs(q[:, :, q.shape[2] - sizes.queries :], k, v, {"file": self.path})

    def hidden(self, case: Case, variant: int) -> Float[Tensor, "B M X"]:
        self._require(case)
        return self._read("x", case, variant)

    def why_not(self, case: Case) -> str:
        try:
            shapes = self._shapes()
        except (OSError, SafetensorError) as error:
            return f"inputs file {self.path!r} cannot be read: {error}"
        sizes = sizes_of(case, 0)
        wanted = {"x": layer_shape(sizes)} if case.level == "layer" else kernel_shapes(sizes)
        return "; ".join(filter(None, (misfit(name, shapes, want) for name, want in wanted.items())))

    def _require(self, case: Case) -> None:
        if reason := self.why_not(case):
            raise ValueError(f"{self.path}: {reason}" if self.path not in reason else reason)

    def _shapes(self) -> dict[str, list[int]]:
        with safe_open(self.path, framework="pt") as file:
            return {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118, not a mapping

    def _read(self, name: str, case: Case, variant: int) -> Tensor:
        sizes = sizes_of(case, variant)
        region = self._region(self._shapes()[name], case, variant)
        with safe_open(self.path, framework="pt") as file:
            part = file.get_slice(name)
            if name == "x":
                data = part[region.rows, region.positions]
            else:
                data = part[region.rows, :, region.positions]
        if not torch.isfinite(data).all():
            raise ValueError(f"{self.path}: {name} has NaN or infinite values, finite ones are needed")
        data = data.to(sizes.dtype)
        return other_half(data, sizes.shared, negate=name in "vx") if variant == 1 else data

    def _region(self, shape: list[int], case: Case, variant: int) -> Region:
        attended, sizes = sizes_of(case, 0), sizes_of(case, variant)
        rows, positions = shape[0], shape[-2]
        if variant != CALIBRATION:
            return Region(slice(0, case.batch), slice(0, attended.positions))
        if positions > attended.positions:
            end = min(positions, attended.positions + sizes.positions)
            return Region(slice(0, case.batch), slice(attended.positions, end))
        if rows > case.batch:
            return Region(slice(case.batch, 2 * case.batch), slice(0, sizes.positions))
        raise ValueError(
            f"{self.path} has nothing left to calibrate on: {rows} sequences of {positions} positions, all of them "
            f"attended to at n={case.n}, batch={case.batch}; a longer file or a further sequence is needed"
        )


def kernel_shapes(sizes: Sizes) -> dict[str, tuple[int, ...]]:
    """Shapes that q, k and v of a file must have, as many or more in the first axis and the third."""
    return {
        "q": (sizes.batch, sizes.heads, sizes.positions, sizes.head_dim),
        "k": (sizes.batch, sizes.kv_heads, sizes.positions, sizes.head_dim),
        "v": (sizes.batch, sizes.kv_heads, sizes.positions, sizes.value_dim),
    }


def layer_shape(sizes: Sizes) -> tuple[int, ...]:
    """Shape that x of a file must have, as many or more in the first two axes."""
    return (sizes.batch, sizes.positions, sizes.width)


def misfit(name: str, shapes: dict[str, list[int]], wanted: tuple[int, ...]) -> str:
    """Why a tensor of a file cannot be used, or nothing."""
    if name not in shapes:
        return f"the file has no tensor {name!r}, only {', '.join(sorted(shapes)) or 'none'}"
    shape = shapes[name]
    growing = (0, len(wanted) - 2)  # sequences and positions, of which a part may be taken
    fits = len(shape) == len(wanted) and all(
        have >= want if axis in growing else have == want
        for axis, (have, want) in enumerate(zip(shape, wanted, strict=True))
    )
    if fits:
        return ""
    words = ", ".join(f"at least {size}" if axis in growing else str(size) for axis, size in enumerate(wanted))
    return f"{name} has the shape {tuple(shape)}, needed is ({words})"


def other_half(data: Tensor, shared: int, *, negate: bool) -> Tensor:
    """The same first `shared` positions (second axis from the end), and the rest in reverse order."""
    tail = data[..., shared:, :].flip(-2)
    return torch.cat((data[..., :shared, :], -tail if negate else tail), dim=-2)
