"""Contract checks on state, copies and precision: everything a module draws or learns is in its state."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from attentions.common.problem import problem_of
from attentions.contract.candidate import EXACTLY, Candidate, NotApplicable, agree

if TYPE_CHECKING:
    from attentions.base import Attention

LARGE = (30.0, 1e3, 1.5e4)  # the last one's squares overflow float16; its largest values just fit


def state_is_all_there_is(c: Candidate) -> None:
    """A module with another seed that loads a state dict gives its source's output; a state dict holds only tensors."""
    one, two = c.make(seed=5), c.make(seed=6)
    inputs = c.sample(one, 67, 67)
    state = one.state_dict()
    for name, value in state.items():
        assert isinstance(value, Tensor), f"state_dict() holds {name}={value!r}, which is not a tensor"
    two.load_state_dict(state)
    assert torch.equal(one(*inputs), two(*inputs)), (
        "a module with another seed and the same state gives a different output"
    )
    agree(two.naive(*inputs), one.naive(*inputs), EXACTLY, "naive of a module with another seed and the same state")


def copies_answer_alike(c: Candidate) -> None:
    """A deep copy and a module saved whole give the same output as the original."""
    a = c.make()
    inputs, file = c.sample(a, 67, 67), io.BytesIO()
    want = a(*inputs)
    torch.save(a, file)
    file.seek(0)
    for what, one in {"deep": copy.deepcopy(a), "saved": torch.load(file, weights_only=False)}.items():
        assert torch.equal(one(*inputs), want), f"a {what} copy gives a different output"


def conversion_keeps_what_selects(c: Candidate) -> None:
    """A module converted to half precision and back gives the same results on inputs that both precisions represent."""
    a = c.make(torch.float32)
    for dtype, tolerance in c.backend.tolerance.items():
        if dtype.itemsize > 2:
            continue
        inputs = c.sample(a, 67, 67, dtype=dtype)
        want = a.naive(*(x.float() for x in inputs))
        half = copy.deepcopy(a).to(dtype)
        # A recurrence has weights, which are rounded like a model's; a support has none.
        allowed = tolerance if a.approximates is None else EXACTLY
        agree(half.naive(*inputs), want, allowed, f"naive of a module converted to {dtype}")
        back = half.float().naive(*(x.float() for x in inputs))
        agree(back, want, allowed, f"naive of a module converted to {dtype} and back")


def large_inputs_are_right(c: Candidate) -> None:
    """Large inputs in half precision match the definition, with infinity only where it overflows."""
    checked = False
    for dtype, tolerance in c.backend.tolerance.items():
        if dtype.itemsize > 2:
            continue
        a = c.make(dtype)
        for factor in LARGE:
            inputs = _large(c, a, factor, dtype)
            if a.why_not(problem_of(a, inputs[0], inputs[1])):
                continue
            checked = True
            out, want = a(*inputs), a.naive(*inputs)
            inside = want.abs() <= torch.finfo(dtype).max
            beyond = out[want.abs() > 1.1 * torch.finfo(dtype).max]
            assert beyond.isinf().all(), f"inputs of {factor:g} in {dtype}: finite where the definition is out of range"
            agree(out[inside], want[inside], tolerance, f"inputs of {factor:g} in {dtype}")
    if not checked:
        raise NotApplicable("no half precision")


def _large(c: Candidate, a: Attention, factor: float, dtype: torch.dtype) -> tuple[Tensor, ...]:
    return tuple((x.clamp(-4, 4) * factor).to(dtype) for x in c.sample(a, 67, 67))


CHECKS: tuple[Callable[[Candidate], None], ...] = (
    state_is_all_there_is,
    copies_answer_alike,
    conversion_keeps_what_selects,
    large_inputs_are_right,
)
