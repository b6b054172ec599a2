"""The user's own q, k and v, from a `.safetensors` file with tensors of these names (and x for layers).

q is (B, H, M, D), k (B, G, M, D), v (B, G, M, E) and x (B, M, H·D), with at least as many sequences and positions as
the case needs; the first ones are used. In decode mode the query is q at the new position. Numbers must be floating
point, finite and within the range of the case's dtype.

A file holds one set of data, so variant 1 reverses the order of the later half of the positions and negates v (or x)
there. The calibration sample is taken from positions after the attended ones, or else from the same positions of
further sequences; a file that has neither cannot be used for calibration, and an error says so.
"""

from __future__ import annotations

import itertools
import math
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from torch import Tensor

from harness.common.source_hash import content_hash
from harness.inputs.base import CALIBRATION, InputKind, Inputs, Sizes, sizes_of

if TYPE_CHECKING:
    from harness.common.rows import Case

KINDS = ("F64", "F32", "F16", "BF16")  # dtype names used in safetensors files
READ_AT_ONCE = 4096  # positions
SETTLED_NS = 2 * 10**9  # a file modified more recently than this may be modified again within the same timestamp


@dataclass(frozen=True)
class Region:
    """The sequences and positions of the file that a variant uses."""

    rows: slice
    positions: slice


@dataclass(frozen=True)
class File(InputKind):
    """Inputs from the file at `path`. Raises ValueError if it is unreadable or its shapes do not fit."""

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
        """Return why the case cannot use the file; also reads the numbers, so that unusable ones are reported early."""
        sizes = sizes_of(case, 0)
        wanted = {"x": layer_shape(sizes)} if case.level == "layer" else kernel_shapes(sizes)
        try:
            shapes = self._shapes()
            found = [misfit(name, shapes, want) for name, want in wanted.items()]
            if not any(found):
                found = [self._unusable(name, case) for name in wanted]
        except (OSError, SafetensorError) as error:
            return f"inputs file {self.path!r} cannot be read: {error}"
        return "; ".join(filter(None, found))

    def identity(self) -> str:
        return content_hash(Path(self.path))

    def _require(self, case: Case) -> None:
        if reason := self.why_not(case):
            raise ValueError(f"{self.path}: {reason}" if self.path not in reason else reason)

    def _shapes(self) -> dict[str, list[int]]:
        if Path(self.path).exists() and not Path(self.path).is_file():
            raise OSError("it is not a regular file")  # opening a pipe would wait forever
        with safe_open(self.path, framework="pt") as file:
            return {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118, not a mapping

    def _unusable(self, name: str, case: Case) -> str:
        """Return what is wrong with the numbers of a tensor that a case attends to; "" if nothing."""
        with safe_open(self.path, framework="pt") as file:
            if (kind := file.get_slice(name).get_dtype()) not in KINDS:
                return f"{name} has dtype {kind}; it must be one of {', '.join(KINDS)}"
        file = Path(self.path).stat()
        settled = time.time_ns() - file.st_mtime_ns > SETTLED_NS
        stamp = (file.st_mtime_ns, file.st_size, file.st_ino) if settled else (uuid4().int,)
        size = largest(self.path, name, case.batch, sizes_of(case, 0).positions, stamp)
        if not math.isfinite(size):
            return f"{name} has NaN or infinite values; all must be finite"
        limit = torch.finfo(getattr(torch, case.dtype)).max
        return f"{name} reaches {size:.3g}, above the {case.dtype} maximum of {limit:.3g}" if size > limit else ""

    def _read(self, name: str, case: Case, variant: int) -> Tensor:
        sizes = sizes_of(case, variant)
        region = self._region(self._shapes()[name], case, variant)
        with safe_open(self.path, framework="pt") as file:
            part = file.get_slice(name)
            if name == "x":
                data = part[region.rows, region.positions]
            else:
                data = part[region.rows, :, region.positions]
        data = data.to(sizes.dtype)
        if not torch.isfinite(data).all():
            raise ValueError(f"{self.path}: {name} has NaN or infinite values as {case.dtype}; all must be finite")
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
            f"{self.path} has no data left for calibration: {rows} sequences of {positions} positions, all of them "
            f"attended to at n={case.n}, batch={case.batch}; use a longer file or one with more sequences"
        )


@cache
def largest(path: str, name: str, batch: int, positions: int, stamp: tuple[int, ...]) -> float:
    """Return the largest magnitude in the first sequences and positions of a file's tensor; NaN or inf if it has any.

    The result is cached per `stamp`, which must change when the file is replaced.
    """
    found = 0.0
    with safe_open(path, framework="pt") as file:
        part = file.get_slice(name)
        for row, start in itertools.product(range(batch), range(0, positions, READ_AT_ONCE)):
            stretch = slice(start, min(start + READ_AT_ONCE, positions))
            block = part[row : row + 1, stretch] if name == "x" else part[row : row + 1, :, stretch]
            here = block.abs().max().item()
            if not math.isfinite(here):
                return here
            found = max(found, here)
    return found


def kernel_shapes(sizes: Sizes) -> dict[str, tuple[int, ...]]:
    """Shapes that a file's q, k and v must have; the first and third axes may be larger."""
    return {
        "q": (sizes.batch, sizes.heads, sizes.positions, sizes.head_dim),
        "k": (sizes.batch, sizes.kv_heads, sizes.positions, sizes.head_dim),
        "v": (sizes.batch, sizes.kv_heads, sizes.positions, sizes.value_dim),
    }


def layer_shape(sizes: Sizes) -> tuple[int, ...]:
    """Shape that a file's x must have; the first two axes may be larger."""
    return (sizes.batch, sizes.positions, sizes.width)


def misfit(name: str, shapes: dict[str, list[int]], wanted: tuple[int, ...]) -> str:
    """Return why a tensor of a file cannot be used; "" if it can."""
    if name not in shapes:
        return f"the file has no tensor {name!r}, only {', '.join(sorted(shapes)) or 'none'}"
    shape = shapes[name]
    growing = (0, len(wanted) - 2)  # sequences and positions, of which a part may be used
    fits = len(shape) == len(wanted) and all(
        have >= want if axis in growing else have == want
        for axis, (have, want) in enumerate(zip(shape, wanted, strict=True))
    )
    if fits:
        return ""
    words = ", ".join(f"at least {size}" if axis in growing else str(size) for axis, size in enumerate(wanted))
    return f"{name} has shape {tuple(shape)}; it must be ({words})"


def other_half(data: Tensor, shared: int, *, negate: bool) -> Tensor:
    """Keep the first `shared` positions (second axis from the end) and reverse the order of the rest."""
    tail = data[..., shared:, :].flip(-2)
    return torch.cat((data[..., :shared, :], -tail if negate else tail), dim=-2)
