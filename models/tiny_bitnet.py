"""Trains the small BitNet in models/tiny-bitnet/ from scratch: byte-level, grouped heads, quantised linears.

    python -m models.tiny_bitnet --seconds 5400            # as models/tiny-bitnet/train.yaml says
    python -m models.tiny_bitnet --seconds 5400 --resume   # goes on where the last run was stopped

The folder then holds `model.safetensors` and `config.json` for `AutoModelForCausalLM.from_pretrained`, and
`log.jsonl`: a line every `--every` seconds with loss by kind of row and accuracy on examples never trained on.
`python -m models.tiny_bitnet_figure` draws it. The state lies in `--work` and is written as a whole or not at all.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import yaml
from pydantic import BaseModel, ConfigDict
from torch import nn
from transformers import BitNetConfig, BitNetForCausalLM

from lsh_bitnet.quantised import ONLINE, quantise
from models.tiny_bitnet_data import TOKENIZER, Mixture, checks, split_text
from tasks.encoding import encode
from tasks.example import Task
from tasks.text import TextBytes

FOLDER = Path(__file__).parent / "tiny-bitnet"


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Shape(_Part):
    """Sizes of the model; train.yaml says what each is."""

    width: int
    layers: int
    heads: int
    kv_heads: int
    mlp: int
    positions: int
    rope_theta: float


class Stage(_Part):
    """Rows of one length and mixture, until a share of the time has passed."""

    until: float
    length: int
    piece: int | None = None
    compiled: bool
    mix: dict[str, float]


class Plan(_Part):
    """train.yaml, whose comments explain every key."""

    model: Shape
    step_tokens: int
    muon_lr: float
    adam_lr: float
    warmup: int
    decay: float
    answer_weight: float
    held_out: float
    seed: int
    stages: list[Stage]

    def stage(self, progress: float) -> Stage:
        """The stage at a share of the time, from 0 to 1."""
        return next((stage for stage in self.stages if progress < stage.until), self.stages[-1])

    def rate(self, progress: float, step: int) -> float:
        """What the learning rates are multiplied by at a share of the time."""
        return max(0.0, min(1.0, (step + 1) / self.warmup, (1 - progress) / self.decay))


def build(shape: Shape, seed: int) -> BitNetForCausalLM:
    """A BitNet with random weights and quantised linears."""
    torch.manual_seed(seed)
    config = BitNetConfig(
        vocab_size=TOKENIZER.vocab_size,
        hidden_size=shape.width,
        intermediate_size=shape.mlp,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=shape.positions,
        rope_parameters={"rope_type": "default", "rope_theta": shape.rope_theta},
        pad_token_id=TOKENIZER.pad_id,
        bos_token_id=TOKENIZER.bos_id,
        eos_token_id=TOKENIZER.eos_id,
        tie_word_embeddings=True,
    )
    model = BitNetForCausalLM(config)
    quantise(model)
    return model


class Training:
    """One run: model, optimizers, time spent so far."""

    def __init__(self, plan: Plan, work: Path, *, seconds: float) -> None:
        self.plan, self.work, self.seconds = plan, work, seconds
        self.model = build(plan.model, plan.seed)
        self.text, self.held_out = split_text(work, plan.held_out)
        matrices = [p for name, p in self.model.named_parameters() if p.ndim == 2 and "embed" not in name]
        others = [p for name, p in self.model.named_parameters() if p.ndim != 2 or "embed" in name]
        self.optimizers: list[tuple[torch.optim.Optimizer, float]] = [
            (torch.optim.Muon(matrices, lr=plan.muon_lr, weight_decay=0.01), plan.muon_lr),
            (torch.optim.AdamW(others, lr=plan.adam_lr, betas=(0.9, 0.95), weight_decay=0.0), plan.adam_lr),
        ]
        self.step, self.tokens, self.before_s, self.started = 0, 0, 0.0, time.monotonic()
        self.compiled = torch.compile(self.model)

    @property
    def spent_s(self) -> float:
        """Seconds of this run and of those it resumes."""
        return self.before_s + time.monotonic() - self.started

    @property
    def progress(self) -> float:
        """Share of the time that is spent."""
        return self.spent_s / self.seconds

    def advance(self) -> float:
        """One step; its loss."""
        stage = self.plan.stage(self.progress)
        rows = self.plan.step_tokens // stage.length
        batch = Mixture(
            stage.mix,
            stage.length,
            piece=stage.piece,
            text=self.text,
            answer_weight=self.plan.answer_weight,
            seed=self.plan.seed,
        ).batch(rows, self.step)
        for optimizer, rate in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate * self.plan.rate(self.progress, self.step)
        stance, forward = ("default", self.compiled) if stage.compiled else ("force_eager", self.model)
        with torch.autocast("cpu", torch.bfloat16), torch.compiler.set_stance(stance):
            logits = forward(batch.ids, use_cache=False).logits
        losses = F.cross_entropy(logits[:, :-1].float().flatten(0, 1), batch.ids[:, 1:].flatten(), reduction="none")
        weights = batch.weights[:, 1:].flatten()
        loss = (losses * weights).sum() / weights.sum()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer, _ in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        self.step, self.tokens = self.step + 1, self.tokens + batch.ids.numel()
        return loss.item()

    def save(self) -> None:
        """State and model, each replaced in one move."""
        state = {
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer, _ in self.optimizers],
            "step": self.step,
            "tokens": self.tokens,
            "spent_s": self.spent_s,
        }
        torch.save(state, self.work / "state.new")
        (self.work / "state.new").replace(self.work / "state.pt")

    def load(self) -> None:
        """Go on from the state in `work`."""
        state = torch.load(self.work / "state.pt", weights_only=True)
        self.model.load_state_dict(state["model"])
        for (optimizer, _), stored in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(stored)
        self.step, self.tokens, self.before_s = state["step"], state["tokens"], state["spent_s"]

    def export(self, folder: Path) -> None:
        """The model for `from_pretrained`."""
        self.model.config.quantization_config = ONLINE
        self.model.save_pretrained(folder)


def evaluate(model: nn.Module, length: int, text: TextBytes, *, examples: int, seed: int = 1_000) -> dict[str, float]:
    """Bits per byte on held-out text, and accuracy of whole answers, as greedy decoding would give them."""
    found: dict[str, float] = {}
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        rows = torch.stack([text.tokens(length, seed=i).long() for i in range(max(1, 8192 // length))])
        losses = [F.cross_entropy(model(row[None, :-1]).logits[0], row[1:]) for row in rows]
        found["bits_per_byte"] = torch.stack(losses).mean().item() / torch.tensor(2.0).log().item()
        for name, task in checks(length, text, seed).items():
            found[name] = sum(_right(model, task, i) for i in range(examples)) / examples
    return found


def _right(model: nn.Module, task: Task, index: int) -> float:
    """Share of the tokens to be known that are the most likely ones in MQAR; elsewhere whether all of an answer are."""
    ids, labels = encode(task.example(index), TOKENIZER, learn="spans" if task.name == "mqar_text" else "answer")
    known = (labels[1:] >= 0) & (ids[1:] != TOKENIZER.eos_id)  # an answer is right whether or not it ends there
    hits = model(ids[None, :-1]).logits[0].argmax(-1)[known] == ids[1:][known]
    return hits.float().mean().item() if task.name == "mqar_text" else float(hits.all())


def main() -> None:
    """Train until the time is over."""
    parser = argparse.ArgumentParser(description="Train the small BitNet.")
    parser.add_argument("--plan", type=Path, default=FOLDER / "train.yaml")
    parser.add_argument("--out", type=Path, default=FOLDER)
    parser.add_argument("--work", type=Path, required=True, help="folder for the state and the text")
    parser.add_argument("--seconds", type=float, required=True, help="time for all of it")
    parser.add_argument("--every", type=float, default=300.0, help="seconds between evaluations")
    parser.add_argument("--examples", type=int, default=24, help="examples of each task in an evaluation")
    parser.add_argument("--resume", action="store_true")
    given = parser.parse_args()
    plan = Plan.model_validate(yaml.safe_load(given.plan.read_text(encoding="utf8")))
    training = Training(plan, given.work, seconds=given.seconds)
    if given.resume:
        training.load()
    _run(training, given)


def _run(training: Training, given: argparse.Namespace) -> None:
    since, losses = training.spent_s, []
    with (given.out / "log.jsonl").open("a" if given.resume else "w", encoding="utf8") as log:
        while training.progress < 1:
            losses.append(training.advance())
            if training.spent_s - since >= given.every or training.progress >= 1:
                since = training.spent_s
                _record(training, losses, log, given.examples)
                training.save()
                training.export(given.out)
                losses = []


def _record(training: Training, losses: list[float], log: Any, examples: int) -> None:
    length = training.plan.stage(min(training.progress, 0.999)).length
    line = {
        "step": training.step,
        "tokens": training.tokens,
        "spent_s": round(training.spent_s, 1),
        "length": length,
        "loss": round(sum(losses) / len(losses), 4),
        **{
            name: round(value, 4)
            for name, value in evaluate(training.model.eval(), length, training.held_out, examples=examples).items()
        },
    }
    training.model.train()
    log.write(json.dumps(line) + "\n")
    log.flush()
    print(line, flush=True)


if __name__ == "__main__":
    main()
