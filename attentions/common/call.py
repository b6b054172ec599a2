"""Checks that run on every call of an attention, before the backend's code."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from attentions.common.inputs import check_first, check_index, check_inputs, one_dtype, without_padding
from attentions.common.problem import problem_of
from transformer_vq.precision import without_autocast

if TYPE_CHECKING:
    from attentions.base import Attention


def checked(method: Callable[..., Any]) -> Callable[..., Any]:
    """Decorates a method on q, k and optionally v: checks the call, masks padding and turns autocast off."""

    @functools.wraps(method)
    def run(self: Attention, q: Tensor, k: Tensor, v: Tensor | None = None, **options: Any) -> Any:
        first, rows = options.get("first"), options.get("rows")
        given = one_dtype(*((q, k) if v is None else (q, k, v)))
        check_call(self, *given, first=first)
        if rows is not None:
            check_index("rows", rows, q.shape[2])
        count = q.shape[2] if rows is None else len(rows)
        if len(q) * count == 0:
            return _without_rows(method.__name__, self, given, count)
        if first is not None:
            given = without_padding(*given, first=first)
        with without_autocast(q.device):
            return method(self, *given, **options)

    return run


def _without_rows(name: str, attention: Attention, given: tuple[Tensor, ...], rows: int) -> Any:
    """Return what such a method gives for no sequences or no rows."""
    q = given[0]
    if name == "prepare":
        raise ValueError(
            f"q has shape {tuple(q.shape)}: a calibration sample needs at least one sequence and one position"
        )
    if name == "comparisons":
        return torch.zeros(q.shape[:2], dtype=torch.int64, device=q.device)
    return {} if name == "components" else empty_output(attention, *given, rows=rows).double()


def check_call(
    attention: Attention, q: Tensor, k: Tensor, v: Tensor | None = None, *, first: Tensor | None = None
) -> None:
    """Raise ValueError for inputs that do not fit the attention or each other, or that `why_not` rejects."""
    check_inputs(attention, q, k, v)
    learns = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or (v is not None and v.requires_grad))
    if reason := attention.why_not(problem_of(attention, q, k, backward=learns)):
        raise ValueError(reason)
    if first is not None:
        check_first(first, q, k)


def empty_output(attention: Attention, q: Tensor, k: Tensor, v: Tensor, *, rows: int | None = None) -> Tensor:
    """Return the output for no queries or no sequences, differentiable like any other."""
    count = q.shape[2] if rows is None else rows
    return q.new_zeros(*q.shape[:2], count, attention.value_dim) + 0 * (q.sum() + k.sum() + v.sum())
