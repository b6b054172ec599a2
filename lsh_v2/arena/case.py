"""Runs one case of the long arena in its own process: the cost of a forward pass, or the accuracy a model reaches.

A model is timed only if its output is finite and, for an attention that claims strict causality, if earlier logits do
not change when only later tokens change.
"""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Any

import psutil
import torch
from torch import Tensor

from harness.common.deadline import Deadline
from harness.common.rows import Case, Measurement
from harness.measure import gate, memory
from harness.measure import timer as clock
from lsh_v2.model.language_model import LSHv2Model
from lsh_v2.training.checkpoint import load_model
from lsh_v2.training.trainer import Trainer
from tasks.text import TextBytes

if TYPE_CHECKING:
    from lsh_v2.arena.jobs import ForwardPass, Learning
    from lsh_v2.common.configuration import ModelConfig

CHECKED = 2048  # tokens of the causality check, which must keep all logits
RESERVE = 0.8  # fraction of a case's time; no sample starts if it would exceed this


def forward(job: ForwardPass) -> Measurement:
    """Measure time and memory of a forward pass over `case.n` tokens of text, with the logits of the last token."""
    this, deadline = job.case, Deadline(RESERVE * job.time_s)
    device = torch.device(this.device)
    _prepare(this.threads, device, job.memory_gb)
    whole = _model(job.model, job.checkpoint).to(device, getattr(torch, this.dtype)).eval()
    metrics, wrong = _leak(whole, this)
    if wrong:
        return Measurement(status="wrong", reason=wrong, metrics=metrics)
    before = psutil.Process().memory_info().rss
    answer, peak = _peak(whole, _text(this, 0), device)
    on_host = peak["peak_bytes"] or 0 if device.type == "cpu" else 0
    metrics |= {"rss_mb": (before + on_host) / 1e6, "parameters": float(sum(p.numel() for p in whole.parameters()))}
    metrics |= {"expected_steps": float(answer["expected_steps"])} if "expected_steps" in answer else {}
    wrong = gate.not_finite(answer["logits"])
    del answer
    samples_s: list[float] = []
    while not wrong and len(samples_s) < job.samples and (not samples_s or max(samples_s) < deadline.left_s()):
        ids = _text(this, 1 + len(samples_s))
        answer, seconds = clock.time_once(lambda ids=ids: whole(ids, logits_to_keep=1), device)
        samples_s.append(seconds)
        wrong = gate.not_finite(answer["logits"])
    if wrong:
        return Measurement(status="wrong", reason=wrong, metrics=metrics)
    median_s = statistics.median(samples_s)
    kernel = whole.block(0).mixer.attention.kernel
    cost = {"samples_s": samples_s, "time_s": median_s, "tokens_per_s": this.batch * this.n / median_s, **peak}
    return Measurement(status="ok", kernel=kernel, metrics=metrics, **cost)


def learning(job: Learning) -> Measurement:
    """Train a model on a task and grade its answers to held-out examples; resumes an earlier attempt."""
    torch.set_num_threads(job.case.threads)
    found = Trainer(job.training).run()
    kinds = found["accuracy"].values()
    if not kinds:
        return Measurement(status="skipped", reason="training.num_answers is 0, so no answers were graded")
    count = sum(kind["examples"] for kind in kinds)
    metrics = {
        name: sum(kind[name] * kind["examples"] for kind in kinds) / count for name in ("score", "exact", "chance")
    }
    variance = sum((kind["standard_error"] * kind["examples"] / count) ** 2 for kind in kinds)
    metrics = {"accuracy": metrics.pop("score"), "standard_error": variance**0.5, **metrics, "examples": count}
    metrics |= {"loss_eval": found["loss_eval"][-1], "parameters": float(found["parameters"])}
    return Measurement(status="ok", metrics=metrics | {"training_s": found["seconds"]})


def _prepare(threads: int, device: torch.device, memory_gb: float) -> None:
    """Set the thread count, disable gradients, and limit GPU memory; the process itself limits CPU memory."""
    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    memory.return_freed_memory()
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, memory_gb * 1e9 / total), device)


def _model(config: ModelConfig, checkpoint: str | None) -> LSHv2Model:
    """Build a model and load the weights of the checkpoint, if any."""
    model = LSHv2Model(config)
    if checkpoint is not None:
        model.load_state_dict(load_model(checkpoint).state_dict())
    return model


def _text(case: Case, sample: int) -> Tensor:
    """Return stretches of real text, one per row and different for each sample; bytes are valid in any vocabulary."""
    text, count = TextBytes(), case.batch * case.n
    ids = text.tokens(count, seed=(case.seed * 1000 + sample) % 10_007)
    return ids.view(case.batch, case.n).long().to(case.device)


def _peak(model: LSHv2Model, ids: Tensor, device: torch.device) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Run the first pass, which also warms up, and measure its peak memory beyond the model and its input."""

    def call() -> dict[str, Tensor]:
        return model(ids, logits_to_keep=1)

    if device.type == "cuda":
        call()
        answer, peak = memory.device_peak(call, device)
        return answer, {"peak_bytes": peak, "allocator_bytes": peak}
    (answer, allocated), resident = memory.resident_peak(lambda: memory.allocator_peak(call))
    memory.keep_freed_memory()
    return answer, {"peak_bytes": resident, "allocator_bytes": allocated}


def _leak(model: LSHv2Model, case: Case) -> tuple[dict[str, float], str]:
    """Compare the first half's logits between two texts that share it; encoders are not checked."""
    n = min(case.n, CHECKED)
    if not model.config.causal or n < 2:
        return {}, ""
    ids = _text(case.model_copy(update={"n": n, "batch": 1}), 0)
    other = torch.cat([ids[:, : n // 2], (ids[:, n // 2 :] + 1) % 256], dim=1)
    first, second = (model(x)["logits"][:, : n // 2].float() for x in (ids, other))
    attention = model.block(0).mixer.attention
    found = gate.leak(first, second)
    strict = attention.causality == "strict"
    return {"leak": found.overall}, gate.leaks(found, attention.tolerance[first.dtype]) if strict else ""
