"""One stage of an attention as a subject: what `Attention.components` names, timed alone on inputs that are ready."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from attentions import Attention, resolve
from harness.attention_case import build_attention, calibrate, problem_of_case
from harness.plan import Planned
from harness.references import Store
from harness.rows import Case
from harness.subjects import Finding, Trial, Unsupported

SUBJECT = "component"
SETTING = "component"  # which of a backend's stages a case is about, beside the settings of the backend itself
LISTED_AT = 512  # tokens that are enough for every stage to have something to do


def component_cases(planned: Sequence[Planned]) -> list[Planned]:
    """The planned cases of attentions that have stages, each followed by a case for each stage."""
    found: list[Planned] = []
    names: dict[str, list[str]] = {}
    for one in planned:
        case = one.case
        usual = (case.subject, case.level, case.mode) == ("attention", "kernel", "forward")
        if not usual or resolve(case.backend).components is Attention.components:
            continue
        if case.label not in names:
            names[case.label] = list(stages(case, LISTED_AT))
        found.append(one)
        for name in names[case.label]:
            changed = {
                "subject": SUBJECT,
                "label": f"{case.label}: {name}",
                "settings": {**case.settings, SETTING: name},
            }
            found.append(Planned(case.model_copy(update=changed), one.rounds))
    return found


def stages(case: Case, n: int) -> Mapping[str, Callable[[], object]]:
    """The stages of a case's attention on n tokens of noise."""
    draw = torch.Generator().manual_seed(case.seed)
    heads = ((case.heads, case.head_dim), (case.kv_heads, case.head_dim), (case.kv_heads, case.value_dim))
    inputs = [torch.randn(1, count, n, width, generator=draw).to(case.device) for count, width in heads]
    with torch.no_grad():
        return build_attention(case).components(*inputs)


class ComponentSubject:
    """The stage that the setting `component` names."""

    def setup(self, case: Case, store: Store, key: str) -> Trial:
        torch.set_grad_enabled(False)
        own = {name: value for name, value in case.settings.items() if name != SETTING}
        whole = case.model_copy(update={"settings": own})
        attention = build_attention(whole)
        if reason := attention.why_not(problem_of_case(whole)):
            raise Unsupported(reason)
        prepare_s = calibrate(attention, attention, whole, store) if attention.learns else None
        del prepare_s  # the whole attention's row has it
        inputs = [[t.to(case.device) for t in store.inputs(whole, variant)] for variant in (0, 1)]
        found = [attention.components(*tensors) for tensors in inputs]
        name = str(case.settings.get(SETTING))
        if name not in found[0]:
            raise Unsupported(f"{case.backend} has no stage {name!r} here; it has {', '.join(found[0])}")
        return ComponentTrial([stage[name] for stage in found], problem_of_case(whole).device, case.batch * case.n)


class ComponentTrial(Trial):
    """One stage on two sets of inputs. Whether the whole is right is checked where the whole is timed."""

    def __init__(self, stages: Sequence[Callable[[], object]], device: torch.device, tokens: int) -> None:
        self._stages, self.device, self.tokens = stages, device, tokens

    def call(self, variant: int) -> Any:
        return self._stages[variant]()

    def check(self, variant: int, answer: Any) -> Finding:
        tensors = list(_tensors(answer))
        if not tensors:
            return Finding(wrong="the stage returned no tensor")
        broken = any(t.is_floating_point() and not t.isfinite().all() for t in tensors)
        return Finding(wrong="NaN or infinite values" if broken else "")


def _tensors(answer: Any) -> Iterator[Tensor]:
    """Every tensor in what a stage returned: tensors, sequences of them, objects that hold them."""
    if isinstance(answer, Tensor):
        yield answer
    elif isinstance(answer, Sequence) and not isinstance(answer, str):
        for one in answer:
            yield from _tensors(one)
    elif hasattr(answer, "__dict__"):
        yield from _tensors(list(vars(answer).values()))
