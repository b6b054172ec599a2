"""The subject `component`: one stage of an attention, from `Attention.components`, timed alone on ready inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from harness.subjects.base import CheckResult, Trial, Unsupported
from harness.subjects.instantiate import build_attention, calibrate, problem_of_case

if TYPE_CHECKING:
    from harness.common.rows import Case
    from harness.subjects.references import Store

SUBJECT = "component"
SETTING = "component"  # names the stage that a case measures; the other settings are the backend's
LISTED_AT = 512  # tokens; enough for every stage to have work to do


def stages(case: Case, n: int) -> Mapping[str, Callable[[], object]]:
    """Return the stages of a case's attention on n tokens of noise."""
    draw = torch.Generator().manual_seed(case.seed)
    heads = ((case.heads, case.head_dim), (case.kv_heads, case.head_dim), (case.kv_heads, case.value_dim))
    inputs = [torch.randn(1, count, n, width, generator=draw).to(case.device) for count, width in heads]
    with torch.no_grad():
        return build_attention(case).components(*inputs)


class ComponentSubject:
    """The stage named by the setting `component`."""

    def setup(self, case: Case, store: Store, key: str) -> Trial:
        torch.set_grad_enabled(False)
        own = {name: value for name, value in case.settings.items() if name != SETTING}
        whole = case.model_copy(update={"settings": own})
        attention = build_attention(whole)
        if reason := attention.why_not(problem_of_case(whole)):
            raise Unsupported(reason)
        prepare_s = calibrate(attention, attention, whole, store) if attention.learns else None
        del prepare_s  # it is reported in the row of the whole attention
        inputs = [[t.to(case.device) for t in store.inputs(whole, variant)] for variant in (0, 1)]
        found = [attention.components(*tensors) for tensors in inputs]
        name = str(case.settings.get(SETTING))
        if name not in found[0]:
            raise Unsupported(f"{case.backend} has no stage {name!r} here; it has {', '.join(found[0])}")
        return ComponentTrial([stage[name] for stage in found], problem_of_case(whole).device, case.batch * case.n)


class ComponentTrial(Trial):
    """One stage on two sets of inputs. Correctness is checked where the whole attention is timed."""

    def __init__(self, stages: Sequence[Callable[[], object]], device: torch.device, tokens: int) -> None:
        self._stages, self.device, self.tokens = stages, device, tokens

    def call(self, variant: int) -> Any:
        return self._stages[variant]()

    def check(self, variant: int, answer: Any) -> CheckResult:
        tensors = list(_tensors(answer))
        if not tensors:
            return CheckResult(wrong="the stage returned no tensor")
        broken = any(t.is_floating_point() and not t.isfinite().all() for t in tensors)
        return CheckResult(wrong="NaN or infinite values" if broken else "")


def _tensors(answer: Any) -> Iterator[Tensor]:
    """Yield every tensor in a stage's result: tensors, sequences of them, and objects that hold them."""
    if isinstance(answer, Tensor):
        yield answer
    elif isinstance(answer, Sequence) and not isinstance(answer, str):
        for one in answer:
            yield from _tensors(one)
    elif hasattr(answer, "__dict__"):
        yield from _tensors(list(vars(answer).values()))
