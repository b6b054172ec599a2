"""The training loop. Everything that determines the next step is in the checkpoint or follows from the configuration.

Weights, optimizer, random state, and step are in the checkpoint; the order of the rows depends on seed and epoch only.
A run that is killed and restarted therefore has the same loss curve as one that is not.
"""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from lsh_v2.common.schemas import TrainingState
from lsh_v2.model.component_profile import profile_model
from lsh_v2.model.language_model import LSHv2Model
from lsh_v2.training import checkpoint
from lsh_v2.training.checks import require_room
from lsh_v2.training.configuration import TrainingConfig, plain
from lsh_v2.training.data import loader_of, task_of
from lsh_v2.training.evaluation import graded, held_out_loss
from lsh_v2.training.identity import identity_of
from lsh_v2.training.metrics import STEPS, epoch_losses, loss_drop, write_metrics, write_steps
from lsh_v2.training.optimizer import optimizer_of, set_rates
from lsh_v2.training.tokenizer import tokenizer_of


class TrainingLoop:
    """The state of a run between two steps."""

    def __init__(self, config: TrainingConfig, out: Path, accelerator: Accelerator) -> None:
        self.config, self.out, self.accelerator = config, out, accelerator
        with accelerator.main_process_first():
            self.tokenizer = tokenizer_of(config)
        torch.manual_seed(config.seed)
        self.model = LSHv2Model(config.model_of(self.tokenizer.vocab_size))
        self.optimizer = optimizer_of(self.model, config)
        self.held_out = task_of(config, evaluation=True)  # reports a broken file now, not hours later
        require_room(config, self.tokenizer, task_of(config, evaluation=False), self.held_out)
        self.identity = identity_of(config, self.tokenizer)
        loader, self.batches = loader_of(config, self.tokenizer, accelerator.num_processes)
        self.step, self.seconds, self.tokens = 0, 0.0, 0
        self.steps: list[dict[str, Any]] = []
        self.loss_eval: list[float] = []
        self.wrapped, self.prepared, self.loader = accelerator.prepare(self.model, self.optimizer, loader)
        self.each = len(self.batches) // accelerator.num_processes
        self.total = self.each * config.num_epochs

    def train(self) -> None:
        """Run all remaining steps, with a held-out loss and a checkpoint after each epoch."""
        with (self.out / STEPS).open("a", encoding="utf-8") as record:
            for epoch in range(self.step // self.each, self.config.num_epochs):
                self.batches.epoch = epoch
                self.batches.start = (self.step - epoch * self.each) * self.accelerator.num_processes
                for batch in self.loader:
                    self._one_step(batch.input_ids, batch.labels, epoch, record)
                    if self.step % self.config.checkpoint_every == 0 and self.step % self.each:
                        self._save()
                self._evaluate()
                self._save()

    def finish(self) -> dict[str, Any]:
        """Grade the model's answers, profile it, and write the metrics."""
        metrics = self._metrics()
        if self.accelerator.is_main_process:
            if self.config.num_answers:
                metrics["accuracy"] = graded(
                    self.model,
                    self.held_out,
                    self.tokenizer,
                    count=self.config.num_answers,
                    max_answer_tokens=self.config.max_answer_tokens,
                )
            if self.config.profile_components:
                profile_model(self.model, self.out)
            write_metrics(self.out, metrics)
        self.accelerator.wait_for_everyone()
        return metrics

    def _one_step(self, ids: Tensor, labels: Tensor, epoch: int, record: Any) -> None:
        started = time.perf_counter()
        share = set_rates(self.optimizer, self.step, self.total, self.config.warmup_steps)
        self.wrapped.train()
        out = self.wrapped(ids, labels, logits_to_keep=0)
        self.accelerator.backward(out["loss"])
        norm = self.accelerator.clip_grad_norm_(self.wrapped.parameters(), self.config.gradient_clip)
        figures = self._gathered(out) | {"gradient_norm": float(norm if norm is not None else math.nan)}
        self._require_finite(figures)
        self.prepared.step()
        self.prepared.zero_grad()
        self.step += 1
        figures |= {"learning_rate": share * self.config.learning_rate}
        self.seconds += time.perf_counter() - started
        self.tokens += ids.numel() * self.accelerator.num_processes
        self.steps.append({"step": self.step, "epoch": epoch, **figures})
        self.accelerator.log(figures, step=self.step)
        if self.accelerator.is_main_process:
            record.write(json.dumps(self.steps[-1]) + "\n")
            record.flush()

    def _require_finite(self, figures: dict[str, float]) -> None:
        """Stop before a step would corrupt the weights; a gradient scaler skips infinite gradients by itself."""
        loss, norm = figures["loss"], figures["gradient_norm"]
        if not math.isfinite(loss):
            raise FloatingPointError(f"the loss of step {self.step + 1} is {loss}; {self._advice()}")
        if not math.isfinite(norm):
            if self.accelerator.scaler is None:
                raise FloatingPointError(f"the gradient of step {self.step + 1} has norm {norm}; {self._advice()}")
            del figures["gradient_norm"]  # JSON cannot represent it

    def _advice(self) -> str:
        left = checkpoint.checkpoints(self.out / "checkpoints")
        kept = (
            f"the newest checkpoint, {left[-1].name}, is from before that step"
            if left
            else "there is no checkpoint yet"
        )
        return f"lower learning_rate; {kept}"

    def _gathered(self, out: dict[str, Tensor]) -> dict[str, float]:
        """Return the scalars of a step, averaged over the processes."""
        names = [name for name, x in out.items() if x.ndim == 0]
        values = torch.stack([out[name].detach().float() for name in names])
        reduced = self.accelerator.reduce(values, "mean")
        assert isinstance(reduced, Tensor), "a tensor reduces to a tensor"
        return dict(zip(names, reduced.tolist(), strict=True))

    def _evaluate(self) -> None:
        self.model.eval()
        if self.accelerator.is_main_process:
            loss = held_out_loss(self.model, self.config, self.tokenizer)
            if not math.isfinite(loss):
                raise FloatingPointError(f"the held-out loss after step {self.step} is {loss}; {self._advice()}")
            self.loss_eval.append(loss)
            self.accelerator.log({"loss_eval": loss}, step=self.step)
        self.accelerator.wait_for_everyone()

    def _save(self) -> None:
        if self.accelerator.is_main_process:
            state = {
                "config": plain(self.config),
                "identity": self.identity,
                "model": self.model.config.model_dump(mode="json"),
                "seconds": self.seconds,
                "tokens": self.tokens,
                "steps": self.steps,
                "loss_eval": self.loss_eval,
                "scaler": None if self.accelerator.scaler is None else self.accelerator.scaler.state_dict(),
            }
            optimizer = checkpoint.flatten(self.optimizer) | {"random": torch.get_rng_state()}
            folder = self.out / "checkpoints"
            checkpoint.save(folder, self.step, self.model.state_dict(), optimizer, state)
            checkpoint.prune(folder, self.config.keep_checkpoints)
        self.accelerator.wait_for_everyone()

    def resume(self, state: TrainingState | None) -> None:
        """Restore the newest checkpoint, which has this state. Raises CheckpointError if its weights do not fit."""
        if state is not None:
            path = checkpoint.checkpoints(self.out / "checkpoints")[-1]
            checkpoint.load_weights(self.model, path)
            tensors = checkpoint.read_tensors(path, checkpoint.OPTIMIZER)
            torch.set_rng_state(tensors.pop("random"))
            checkpoint.unflatten(self.optimizer, tensors)
            if self.accelerator.scaler is not None and state.scaler:
                self.accelerator.scaler.load_state_dict(state.scaler)
            self.step, self.seconds, self.tokens = state.step, state.seconds, state.tokens
            self.steps, self.loss_eval = [step.model_dump() for step in state.steps], list(state.loss_eval)
        if self.accelerator.is_main_process:
            write_steps(self.out, self.steps)

    def _metrics(self) -> dict[str, Any]:
        drop = loss_drop(self.steps)
        return {
            "attention": self.model.config.attention,
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "loss_train": epoch_losses(self.steps),
            "loss_eval": self.loss_eval,
            "loss_drop": drop and drop[0],
            "loss_drop_interval": drop and drop[1],
            "accuracy": {},
            "seconds": self.seconds,
            "tokens_per_s": self.tokens / self.seconds if self.seconds else None,
            "finished": True,
            "config": plain(self.config),
            "identity": self.identity,
            "model": self.model.config.model_dump(mode="json"),
            "steps": self.steps,
        }


def newest_state(out: Path) -> TrainingState | None:
    """Return the state of the newest checkpoint in a run's folder, None if there is none. Raises CheckpointError."""
    found = checkpoint.checkpoints(out / "checkpoints")
    return checkpoint.read_state(found[-1], TrainingState) if found else None
