"""Build the attention of a case, ready to be called."""

from __future__ import annotations

import contextlib
import copy
import logging
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from attentions import Attention, Problem, build
from attentions.layer import AttentionLayer
from harness.common.job import Job
from harness.common.rows import Case
from harness.measure import memory
from harness.measure.elapsed import Elapsed
from harness.subjects.base import Unsupported
from harness.subjects.references import CALIBRATION, NoSampleError, Store, UnwritableError

PRIME_TOKENS = 16


def build_attention(case: Case) -> Attention:
    """Build the attention of a case, with its sizes, in eval mode on the case's device."""
    attention = build(
        case.backend,
        heads=case.heads,
        head_dim=case.head_dim,
        kv_heads=case.kv_heads,
        value_dim=case.value_dim,
        causal=case.causal,
        max_len=case.n,
        seed=case.seed,
        **case.settings,
    )
    return attention.to(case.device).eval()


def problem_of_case(case: Case) -> Problem:
    """Return the problem that one timed call of a case solves."""
    decode = case.mode == "decode"
    return Problem(
        batch=case.batch,
        heads=case.heads,
        kv_heads=case.kv_heads,
        queries=1 if decode else case.n,
        keys=case.n + decode,
        head_dim=case.head_dim,
        value_dim=case.value_dim,
        dtype=getattr(torch, case.dtype),
        device=torch.device(case.device),
        causal=case.causal,
        backward=case.mode == "train",
    )


@dataclass(frozen=True)
class Prime(Job[list[str]]):
    """Run a case's attention on a few tokens to trigger compilation; the answer is the warnings that it logged."""

    case: Case

    def run(self) -> list[str]:
        case, warned = self.case, _Warnings(logging.WARNING)
        logging.getLogger().addHandler(warned)
        attention, dtype = build_attention(case), getattr(torch, case.dtype)
        heads = ((case.heads, case.head_dim), (case.kv_heads, case.head_dim), (case.kv_heads, case.value_dim))
        attention(
            *(torch.ones(1, count, PRIME_TOKENS, width, dtype=dtype, device=case.device) for count, width in heads)
        )
        return warned.messages


class _Warnings(logging.Handler):
    """Collects log messages for a parent that does not see them."""

    def __init__(self, level: int) -> None:
        super().__init__(level)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


def module_of(attention: Attention, case: Case) -> nn.Module:
    """Return what a case calls: the attention itself or the layer around it."""
    if case.level == "kernel":
        return attention
    return attention.block(case.heads * case.head_dim).to(case.device, getattr(torch, case.dtype)).eval()


def calibrate(attention: Attention, module: nn.Module, case: Case, store: Store) -> float:
    """Prepare an attention on its calibration sample, once per run; return the seconds that this took.

    The learned state is stored as its `state_dict`. An attention whose `state_dict` does not change keeps its state
    elsewhere, and learns again in each process. Raises Unsupported if there is no calibration sample.
    """
    if known := store.prepared(case):
        state, prepare_s = known
        attention.load_state_dict(state)
        return prepare_s
    before = copy.deepcopy(attention.state_dict())
    prepare_s = _prepare(attention, module, case, store)
    if _can_be_loaded(attention.state_dict(), before):
        with contextlib.suppress(UnwritableError):  # in that case it learns again each time
            store.keep_prepared(case, attention.state_dict(), prepare_s)
    return prepare_s


def _can_be_loaded(state: dict[str, Tensor], before: dict[str, Tensor]) -> bool:
    """Return whether a new attention can load this state, and whether the state differs from `before`."""
    shapes, old_shapes = ({name: tensor.shape for name, tensor in one.items()} for one in (state, before))
    return shapes == old_shapes and any(not torch.equal(tensor, before[name]) for name, tensor in state.items())


def _prepare(attention: Attention, module: nn.Module, case: Case, store: Store) -> float:
    try:
        sample = tuple(tensor.to(case.device) for tensor in store.inputs(case, CALIBRATION))
    except NoSampleError as error:
        raise Unsupported(f"it needs a calibration sample, which is not available: {error}") from error
    with torch.no_grad(), memory.unmeasured():
        if isinstance(module, AttentionLayer):
            sample = module.project(*sample)
        elif case.level == "layer":
            raise Unsupported("its layer does not provide queries and keys for calibration")
        elapsed = Elapsed()
        attention.prepare(*sample)
        prepare_s = elapsed.seconds()
    memory.return_freed_memory()  # the memory pass needs this
    return prepare_s
