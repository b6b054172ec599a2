"""Independent standard normal q, k and v: no key is heavy, so attention is close to a mean over all values.

This is the usual input of attention benchmarks, and says nothing about quality by itself: exact attention is nearly
zero here, and every method that averages enough values looks right.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from harness.inputs.base import Draws, InputKind, Inputs, empty_inputs, sizes_of

if TYPE_CHECKING:
    from harness.common.rows import Case


class Gaussian(InputKind):
    """Every coordinate of q, k, v and x is drawn from N(0, 1)."""

    def make(self, case: Case, variant: int) -> Inputs:
        sizes = sizes_of(case, variant)
        draws = Draws("gaussian", case.seed, variant, sizes)
        q, k, v = empty_inputs(sizes)
        for name, tensor in (("q", q), ("k", k), ("v", v)):
            for b in range(tensor.shape[0]):
                for head in range(tensor.shape[1]):
                    block = draws.normal(tensor.shape[-1], name, b, head)
                    tensor[b, head] = block[sizes.positions - tensor.shape[2] :]
        return Inputs(q, k, v)

    def hidden(self, case: Case, variant: int) -> Float[Tensor, "B M X"]:
        sizes = sizes_of(case, variant)
        draws = Draws("gaussian", case.seed, variant, sizes)
        rows = [draws.normal(sizes.width, "x", b).to(sizes.dtype) for b in range(sizes.batch)]
        return torch.stack(rows)
