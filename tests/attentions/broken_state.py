"""Attentions whose state, copies or precision are wrong on purpose, each with the check that must notice."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tests.attentions.broken import Exact

if TYPE_CHECKING:
    from attentions.base import Attention


class Secretive(Exact):
    """Answers by a draw that its state does not hold."""

    def __init__(self, heads: int, head_dim: int, **shape: Any) -> None:
        super().__init__(heads, head_dim, **shape)
        draw = torch.Generator().manual_seed(self.seed)
        self.register_buffer("factor", 1 + torch.rand((), generator=draw), persistent=False)

    factor: Tensor

    def forward(self, q: Tensor, k: Tensor, v: Tensor, *, first: Tensor | None = None) -> Tensor:
        return super().forward(q, k, v, first=first) * self.factor.to(q.dtype)


class Unique(Exact):
    """Knows a copy of itself from the original."""

    def __init__(self, heads: int, head_dim: int, **shape: Any) -> None:
        super().__init__(heads, head_dim, **shape)
        self.original = id(self)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, *, first: Tensor | None = None) -> Tensor:
        out = super().forward(q, k, v, first=first)
        return out if self.original == id(self) else -out


class Rounded(Exact):
    """Attends by a number that a conversion rounds."""

    def __init__(self, heads: int, head_dim: int, **shape: Any) -> None:
        super().__init__(heads, head_dim, **shape)
        self.register_buffer("third", torch.tensor(1 / 3))

    third: Tensor

    def naive(
        self, q: Tensor, k: Tensor, v: Tensor, *, first: Tensor | None = None, rows: Tensor | None = None
    ) -> Tensor:
        return super().naive(q, k, v, first=first, rows=rows) * self.third.double()


class Narrow(Exact):
    """Multiplies queries and keys in their own dtype."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, *, first: Tensor | None = None) -> Tensor:
        keys = k.repeat_interleave(self.heads // self.kv_heads, dim=1)
        finite = (q.unsqueeze(3) * keys.unsqueeze(2)).sum(-1).isfinite().all(-1, keepdim=True)
        return torch.where(finite, super().forward(q, k, v, first=first), torch.nan)


CASES: dict[type[Attention], set[str]] = {
    Secretive: {"state_is_all_there_is"},
    Unique: {"copies_answer_alike"},
    Rounded: {"conversion_keeps_what_selects"},
    Narrow: {"large_inputs_are_right"},
}
