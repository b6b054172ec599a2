"""The subjects `attention` (quality and cost) and `accuracy` (quality only): one attention on shared inputs.

The gate: a timed answer must be finite and agree with the method's own definition at the sampled rows. If the method
claims strict causality, its past outputs must not change when only the future does. The first round checks each set of
inputs this way; later rounds compare their answers with those of the first.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from attentions.buckets.support import SupportAttention
from harness.measure import gate
from harness.subjects.base import CheckResult, Facts, Trial, Unsupported
from harness.subjects.instantiate import build_attention, calibrate, module_of, problem_of_case
from harness.subjects.modes import Decode, Expected, Forward, Operation, Train
from harness.subjects.references import Store, sampled_rows

if TYPE_CHECKING:
    from attentions import Attention, Problem
    from harness.common.rows import Case

BACKWARD_FLOPS = 2  # the backward pass does two products for each one of the forward pass


class AttentionSubject:
    """Time, memory and quality of an attention or of the layer around it."""

    timed = True

    def setup(self, case: Case, store: Store, key: str) -> Trial:
        torch.set_grad_enabled(case.mode == "train")
        attention = build_attention(case)
        problem = problem_of_case(case)
        if reason := attention.why_not(problem):
            raise Unsupported(reason)
        if case.level == "layer" and case.mode == "decode":
            raise Unsupported("decoding is measured at kernel level; a layer has no decoding stream")
        module = module_of(attention, case)
        prepare_s = calibrate(attention, module, case, store) if attention.learns else None
        trial = AttentionTrial(attention, module, problem, case, store, key)
        trial.timed, trial.prepare_s = self.timed, prepare_s
        return trial


class AccuracySubject(AttentionSubject):
    """The same checks and metrics without timing, for inputs on which only quality matters."""

    timed = False


class AttentionTrial(Trial):
    """An attention on its two sets of inputs."""

    prepare_s: float | None = None

    def __init__(
        self, attention: Attention, module: nn.Module, problem: Problem, case: Case, store: Store, key: str
    ) -> None:
        self.device = problem.device
        self.tokens = problem.batch * problem.queries
        self._attention, self._problem, self._case = attention, problem, case
        self._store, self._key = store, key
        # The checks need float64, which MPS lacks.
        self._checker = torch.device("cpu") if self.device.type == "mps" else self.device
        self._twin: Any = module if self._checker == self.device else copy.deepcopy(module).to(self._checker)
        self._operation = _operation(attention, module, case, self._inputs(self.device))
        self._known = store.fingerprint(key)
        self._past: Tensor | None = None
        self._output_bytes: float | None = None

    def warm(self) -> None:
        self._operation.warm()

    def call(self, variant: int) -> Any:
        return self._operation.call(variant)

    def rewind(self) -> int:
        return self._operation.rewind()

    def keep(self) -> None:
        if self._operation.repeats:
            self._store.keep_fingerprint(self._key, {v: rows.cpu() for v, rows in self._known.items()})

    def check(self, variant: int, answer: Any) -> CheckResult:
        output = self._operation.output(answer)
        self._output_bytes = output.numel() * output.itemsize
        if wrong := self._malformed(output):
            return CheckResult(wrong=wrong)
        sampled = self._sampled(output, answer)
        if variant in self._known and self._operation.repeats:
            error = gate.relative_error(sampled, self._known[variant].to(self._checker))
            return CheckResult(wrong=gate.disagrees(error, self._tolerance, "its own checked output"))
        self._known[variant] = sampled
        found = [self._against_definition(variant, output, answer), self._leak(variant, output)]
        metrics = {name: value for finding in found for name, value in finding.metrics.items()}
        return CheckResult(metrics, next((finding.wrong for finding in found if finding.wrong), ""))

    def facts(self, *, thorough: bool) -> Facts:
        q_k_v, cost = self._operation.inputs[0], self._attention.cost(self._problem)
        kernel_level, streaming = self._case.level == "kernel", isinstance(self._operation, Decode)
        passes = 1 + BACKWARD_FLOPS * self._problem.backward
        counted = thorough and kernel_level
        # A stream has already read its keys; only exact attention must read them all again for the next token.
        reads_all = not streaming or self._attention.exact
        return Facts(
            kernel=self._attention.kernel,
            flops=(cost.flops - cost.past_flops * streaming) * passes if kernel_level else None,
            moved_bytes=sum(t.numel() * t.itemsize for t in q_k_v) + (self._output_bytes or 0) if reads_all else 0.0,
            output_bytes=self._output_bytes,
            state_bytes=self._operation.state_bytes if isinstance(self._operation, Decode) else cost.state_bytes,
            comparisons=float(self._attention.comparisons(*q_k_v[:2]).sum()) if counted else None,
            comparisons_bound=cost.comparisons if kernel_level else None,
            prepare_s=self.prepare_s,
        )

    @property
    def _tolerance(self) -> float:
        return self._attention.tolerance[self._problem.dtype]

    def _inputs(self, device: torch.device) -> list[tuple[Tensor, ...]]:
        """Return both sets of inputs, freshly mapped."""
        return [tuple(t.to(device) for t in self._store.inputs(self._case, variant)) for variant in (0, 1)]

    def _sampled(self, output: Tensor, answer: Any) -> Tensor:
        """Return what later answers are compared with: sampled rows of the output and of the gradient, if any."""
        parts = [part for part in (output, self._operation.gradient(answer)) if part is not None]
        return torch.cat([part.index_select(-2, self._operation.rows) for part in parts], -1).to(self._checker)

    def _malformed(self, output: Tensor) -> str:
        problem, case = self._problem, self._case
        shape = (problem.batch, problem.heads, problem.queries, problem.value_dim)
        if case.level == "layer":
            shape = (problem.batch, problem.queries, case.heads * case.head_dim)
        if tuple(output.shape) != shape or output.dtype != problem.dtype:
            return f"shape {tuple(output.shape)} and {output.dtype} instead of {shape} and {problem.dtype}"
        return gate.not_finite(output)

    def _against_definition(self, variant: int, output: Tensor, answer: Any) -> CheckResult:
        fresh = self._inputs(self._checker)
        expected = self._operation.expected(self._twin, fresh, variant)
        rows = output.index_select(-2, self._operation.checked(variant)).to(self._checker)
        metrics = {"naive_error": gate.relative_error(rows, expected.rows)}
        wrong = gate.disagrees(metrics["naive_error"], self._tolerance, "its own definition")
        if expected.gradient is not None:
            wrong = self._check_gradient(self._operation.gradient(answer), expected, metrics) or wrong
        if variant == 0:
            metrics |= self._quality(rows, self._operation.attended(fresh, variant))
        return CheckResult(metrics if variant == 0 else {}, wrong)

    def _check_gradient(self, gradient: Tensor | None, expected: Expected, metrics: dict[str, float]) -> str:
        assert expected.gradient is not None, "train mode has one"
        if gradient is None:
            return "no gradient reaches the first input"
        least = gate.least_gradient(expected.terms, self._problem.dtype, self._tolerance)
        metrics["gradient_error"] = gate.relative_error(gradient.to(self._checker), expected.gradient, least)
        allowed = gate.GRADIENT_SLACK * self._tolerance
        return gate.not_finite(gradient) or gate.disagrees(
            metrics["gradient_error"], allowed, "the gradient of its definition"
        )

    def _quality(self, found: Tensor, inputs: tuple[Tensor, ...]) -> dict[str, float]:
        """Measure how close the answer is to what the method approximates; empty if that is not attention."""
        if self._case.level != "kernel":
            return {}
        q, k, v = inputs
        metrics: dict[str, float] = {}
        if self._attention.approximates is not None:
            exact = self._exact(q, k, v)
            metrics["error"] = gate.relative_error(found, exact)
            metrics["error_v"] = gate.error_per_value(found, exact, v)
        if isinstance(self._twin, SupportAttention):
            rows = self._operation.checked(1)  # the smaller sample, since each row costs as much as exact attention
            metrics["kept_mass"] = self._twin.kept_mass(q, k, rows=rows).mean().item()
        return metrics

    def _exact(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        stored = self._store.exact(self._case) if self._operation.repeats else None  # a stream has grown since then
        usual = self._attention.approximates == "softmax" and self._attention.scale == self._case.head_dim**-0.5
        if stored is None or not usual:
            stored = self._twin.target(q, k, v, rows=self._operation.rows)
        return stored.to(self._checker)

    def _leak(self, variant: int, output: Tensor) -> CheckResult:
        """Compare the first half of the positions, which both sets of inputs share, between the two answers."""
        shared = self._problem.keys // 2 - (self._problem.keys - self._problem.queries)
        if not self._case.causal or shared < 1:
            return CheckResult()
        past = output[..., :shared, :].to(self._checker)
        if variant == 0:
            self._past = past
            return CheckResult()
        if self._past is None:
            return CheckResult()
        found = gate.leak(self._past, past)
        self._past = None
        strict = self._attention.causality == "strict"
        return CheckResult({"leak": found.overall}, gate.leaks(found, self._tolerance) if strict else "")


def _operation(attention: Attention, module: nn.Module, case: Case, inputs: list[tuple[Tensor, ...]]) -> Operation:
    rows = sampled_rows(inputs[0][0].shape[-2], case.seed).to(case.device)
    if case.mode == "train":
        return Train(module, inputs, rows)
    if case.mode == "decode" and (stream := attention.stream(case.batch)) and (tiny := attention.stream(case.batch)):
        return Decode(attention, inputs, rows, tiny, stream)
    return Forward(module, inputs, rows)
