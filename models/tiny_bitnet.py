"""Trains the small BitNet in models/tiny-bitnet/ from scratch: byte-level, grouped heads, quantised linears.

    python -m models.tiny_bitnet --work data/tiny-bitnet            # as configured in models/tiny-bitnet/train.yaml
    python -m models.tiny_bitnet --work data/tiny-bitnet --resume   # continues where the last run stopped

The output folder gets `model.safetensors` and `config.json` for `AutoModelForCausalLM.from_pretrained`, and
`log.jsonl`, with one line every `--every` tokens: the loss, accuracy on examples never trained on, and the processor
time so far. `python -m models.tiny_bitnet_figure` plots it. All limits are in tokens, not time, so the same plan gives
the same run. The state is in `--work` and is written atomically.
"""

from __future__ import annotations

from attentions.common.stopping import exit_on_signal, run_interruptible

if __name__ == "__main__":
    exit_on_signal()  # before the slow imports

import argparse
import json
import pickle
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor, nn
from transformers import BitNetConfig, BitNetForCausalLM

from harness.common.command_line import count
from harness.config.yaml_source import ConfigError, dotted, read_mapping, show
from harness.results.run_dir import require_folder
from lsh_bitnet.commands import Parser, run
from lsh_bitnet.quantised import ONLINE, quantise
from models.tiny_bitnet_data import TOKENIZER, Mixture, WeightedBatch, checks, split_text
from models.tiny_bitnet_layers import ROWS, register_rows, warm
from tasks.encoding import encode

if TYPE_CHECKING:
    from tasks.example import Task
    from tasks.text import TextBytes

FOLDER = Path(__file__).parent / "tiny-bitnet"
SHORTEST = 192  # tokens; the minimum for an example of every task


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelShape(_Part):
    """Sizes of the model; train.yaml says what each is."""

    width: int
    layers: int
    heads: int
    kv_heads: int
    mlp: int
    positions: int
    rope_theta: float
    spread: float


class Stage(_Part):
    """A training stage with rows of one length and mixture, until `until` tokens have been read."""

    until: int
    length: int
    piece: int | None = None
    step_tokens: int
    compiled: bool
    mix: dict[str, float]


class TrainingPlan(_Part):
    """Schema of train.yaml, whose comments explain every key."""

    model: ModelShape
    muon_lr: float
    adam_lr: float
    warmup: int
    rates: list[tuple[int, float]] = Field(min_length=1)
    quantise: tuple[int, int]
    answer_weight: float
    held_out: float
    seed: int
    stages: list[Stage] = Field(min_length=1)

    @property
    def total(self) -> int:
        """Tokens in the whole run."""
        return self.stages[-1].until

    def stage(self, tokens: int) -> Stage:
        """Return the stage after `tokens` tokens."""
        return next((stage for stage in self.stages if tokens < stage.until), self.stages[-1])

    def rate(self, tokens: int, step: int) -> float:
        """Return the factor on the learning rates after `tokens` tokens and `step` steps."""
        places, rates = zip(*self.rates, strict=True)
        return min((step + 1) / self.warmup, float(np.interp(tokens, places, rates)))

    def quantised(self, tokens: int) -> float:
        """Return how far linears are quantised after `tokens` tokens, from 0 to 1."""
        start, end = self.quantise
        return min(1.0, max(0.0, (tokens - start) / (end - start)))


def build(shape: ModelShape, seed: int) -> BitNetForCausalLM:
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
        initializer_range=shape.spread,
        tie_word_embeddings=False,
    )
    model = BitNetForCausalLM(config)
    nn.init.normal_(model.model.embed_tokens.weight)  # as large as the layers' updates, or these dominate
    nn.init.normal_(model.lm_head.weight, std=0.02)
    quantise(model)
    return model


class TrainingRun:
    """State of a run: model, optimizers, tokens read, and processor time spent."""

    def __init__(self, plan: TrainingPlan, work: Path) -> None:
        self.plan, self.work = plan, work
        self.model = build(plan.model, plan.seed)
        self.share = warm(self.model)
        register_rows()
        self.model.set_attn_implementation(ROWS)
        self.text, self.held_out = split_text(work, plan.held_out)
        matrices = [p for name, p in self.model.named_parameters() if _is_matrix(name, p)]
        others = [p for name, p in self.model.named_parameters() if not _is_matrix(name, p)]
        self.optimizers: list[tuple[torch.optim.Optimizer, float]] = [
            (torch.optim.Muon(matrices, lr=plan.muon_lr, weight_decay=0.01), plan.muon_lr),
            (torch.optim.AdamW(others, lr=plan.adam_lr, betas=(0.9, 0.95), weight_decay=0.0), plan.adam_lr),
        ]
        self.step, self.tokens, self.before_s = 0, 0, -time.process_time()
        self.compiled = torch.compile(self.model)

    @property
    def cpu_s(self) -> float:
        """Processor seconds of this run and of those it resumes."""
        return self.before_s + time.process_time()

    @property
    def stage(self) -> Stage:
        """The current stage."""
        return self.plan.stage(self.tokens)

    def advance(self) -> float:
        """Run one step; returns its loss."""
        stage = self.stage
        mixture = Mixture(
            stage.mix,
            stage.length,
            piece=stage.piece,
            text=self.text,
            answer_weight=self.plan.answer_weight,
            seed=self.plan.seed,
        )
        batch = mixture.batch(stage.step_tokens // stage.length, self.step)
        self._set_rates()
        loss = self._loss(batch, stage)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer, _ in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        self.step, self.tokens = self.step + 1, self.tokens + batch.ids.numel()
        return loss.item()

    def _set_rates(self) -> None:
        self.share.fill_(self.plan.quantised(self.tokens))
        for optimizer, rate in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate * self.plan.rate(self.tokens, self.step)

    def _loss(self, batch: WeightedBatch, stage: Stage) -> Tensor:
        stance, forward = ("default", self.compiled) if stage.compiled else ("force_eager", self.model)
        with torch.autocast("cpu", torch.bfloat16), torch.compiler.set_stance(stance):
            logits = forward(batch.ids, use_cache=False).logits
        losses = F.cross_entropy(logits[:, :-1].float().flatten(0, 1), batch.ids[:, 1:].flatten(), reduction="none")
        weights = batch.weights[:, 1:].flatten()
        return (losses * weights).sum() / weights.sum()

    def save(self) -> None:
        """Write the training state atomically."""
        state = {
            "plan": self.plan.model_dump(mode="json"),
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer, _ in self.optimizers],
            "step": self.step,
            "tokens": self.tokens,
            "cpu_s": self.cpu_s,
        }
        torch.save(state, self.work / "state.new")
        (self.work / "state.new").replace(self.work / "state.pt")

    def load(self) -> None:
        """Resume from the state in `work`.

        Raises ValueError if there is none, if it cannot be read, and if it belongs to another plan.
        """
        place = self.work / "state.pt"
        try:
            state = torch.load(place, weights_only=True)
        except FileNotFoundError as error:
            raise ValueError(f"--resume: there is no state in {self.work}; start without --resume") from error
        except (RuntimeError, EOFError, OSError, pickle.UnpicklingError) as error:
            raise ValueError(
                f"--resume: {place} cannot be read: it is damaged or not a state of this command"
            ) from error
        if state.get("plan") != self.plan.model_dump(mode="json"):
            raise ValueError(f"--resume: {place} is from another plan; use that plan, or another folder for --work")
        self.model.load_state_dict(state["model"])
        for (optimizer, _), stored in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(stored)
        self.step, self.tokens = state["step"], state["tokens"]
        self.before_s = state["cpu_s"] - time.process_time()

    def export(self, folder: Path) -> None:
        """Save the model for `from_pretrained`."""
        self.model.config.quantization_config = ONLINE
        self.model.save_pretrained(folder)


def _is_matrix(name: str, parameter: nn.Parameter) -> bool:
    """Whether a parameter belongs to a quantised linear, which is trained with Muon."""
    return parameter.ndim == 2 and "embed" not in name and "lm_head" not in name


def evaluate(
    model: nn.Module,
    length: int,
    text: TextBytes,
    *,
    examples: int,
    text_tokens: int = 8_192,
    tasks: Mapping[str, Task] | None = None,
) -> dict[str, float]:
    """Measure bits per byte on held-out text, and the accuracy of whole answers as decoded greedily.

    tasks: the tasks for accuracy, by name; `checks` if None.
    """
    found: dict[str, float] = {}
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        rows = torch.stack([text.tokens(length, seed=i).long() for i in range(max(1, text_tokens // length))])
        losses = [F.cross_entropy(model(row[None, :-1]).logits[0], row[1:]) for row in rows]
        found["bits_per_byte"] = torch.stack(losses).mean().item() / torch.tensor(2.0).log().item()
        for name, task in (checks(length, text) if tasks is None else tasks).items():
            found[name] = sum(_right(model, task, i) for i in range(examples)) / examples
    return found


def _right(model: nn.Module, task: Task, index: int) -> float:
    """Return the share of predictable tokens that are the argmax in MQAR; for other tasks, whether the answer is."""
    ids, labels = encode(task.example(index), TOKENIZER, learn="spans" if task.name == "mqar_text" else "answer")
    known = (labels[1:] >= 0) & (ids[1:] != TOKENIZER.eos_id)  # an answer is correct whether or not it ends there
    hits = model(ids[None, :-1]).logits[0].argmax(-1)[known] == ids[1:][known]
    return hits.float().mean().item() if task.name == "mqar_text" else float(hits.all())


def read_plan(path: Path) -> TrainingPlan:
    """Read a plan from a file. Raises ValueError that names the key, the value, and the mistake."""
    values = read_mapping(path)
    try:
        return TrainingPlan.model_validate(values)
    except ValidationError as error:
        faults = (f"{dotted(fault['loc'])}: {show(fault['input'])}: {fault['msg']}" for fault in error.errors())
        raise ConfigError(list(faults), str(path)) from error


def main(arguments: Sequence[str] | None = None) -> int:
    """Train with the given plan."""
    parser = Parser(prog="python -m models.tiny_bitnet", description="Train the small BitNet.")
    parser.add_argument("--plan", type=Path, default=FOLDER / "train.yaml", help="YAML file of the training plan")
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder for the model and the log")
    parser.add_argument(
        "--work", type=Path, required=True, help="folder for the training state and the downloaded text"
    )
    parser.add_argument("--every", type=count(1), default=500_000, help="tokens between evaluations")
    parser.add_argument("--examples", type=count(1), default=16, help="examples of each task in an evaluation")
    parser.add_argument("--resume", action="store_true", help="continue from the state in --work")
    given = parser.parse_args(arguments)

    def work() -> int:
        for name in ("out", "work"):
            require_folder(getattr(given, name), f"--{name}")
        training = TrainingRun(read_plan(given.plan), given.work)
        if given.resume:
            training.load()
        _run(training, given)
        return 0

    return run(parser, work)


def _run(training: TrainingRun, given: argparse.Namespace) -> None:
    losses: list[float] = []
    given.out.mkdir(parents=True, exist_ok=True)
    log, mode = given.out / "log.jsonl", "a" if given.resume else "w"  # an existing log is kept until the first line
    while training.tokens < training.plan.total:
        stage, before = training.stage, training.tokens
        losses.append(training.advance())
        if training.tokens // given.every > before // given.every or training.stage is not stage:
            training.save()
            training.export(given.out)
            with log.open(mode, encoding="utf8") as file:
                _record(training, stage.length, losses, file, given.examples)
            losses, mode = [], "a"
    training.save()
    training.export(given.out)


def _record(training: TrainingRun, length: int, losses: list[float], log: TextIO, examples: int) -> None:
    length = max(length, SHORTEST)
    found = evaluate(training.model.eval(), length, training.held_out, examples=examples)
    training.model.train()
    line = {
        "step": training.step,
        "tokens": training.tokens,
        "cpu_s": round(training.cpu_s, 1),
        "length": length,
        "loss": round(sum(losses) / len(losses), 4),
        **{name: round(value, 4) for name, value in found.items()},
    }
    log.write(json.dumps(line) + "\n")
    print(line, flush=True)


if __name__ == "__main__":
    raise SystemExit(run_interruptible(main))
