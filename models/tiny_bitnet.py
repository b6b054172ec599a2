"""Trains the small BitNet in models/tiny-bitnet/ from scratch: byte-level, grouped heads, quantised linears.

    python -m models.tiny_bitnet --work data/tiny-bitnet            # as models/tiny-bitnet/train.yaml says
    python -m models.tiny_bitnet --work data/tiny-bitnet --resume   # goes on where the last run was stopped

The folder then holds `model.safetensors` and `config.json` for `AutoModelForCausalLM.from_pretrained`, and
`log.jsonl`: a line every `--every` tokens with the loss, accuracy on examples never trained on, and the processor time
so far. `python -m models.tiny_bitnet_figure` draws it. Everything goes by tokens, none by the clock: the same plan
gives the same run. The state lies in `--work` and is written as a whole or not at all.
"""

from __future__ import annotations

from attentions.stopping import exit_on_signal, run_interruptible

if __name__ == "__main__":
    exit_on_signal()  # before the imports that take long

import argparse
import json
import pickle
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TextIO

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor, nn
from transformers import BitNetConfig, BitNetForCausalLM

from harness.command_line import count
from harness.config_source import ConfigError, dotted, read_mapping, show
from harness.run_folder import require_folder
from lsh_bitnet.commands import Parser, run
from lsh_bitnet.quantised import ONLINE, quantise
from models.tiny_bitnet_data import TOKENIZER, Mixture, Rows, checks, split_text
from models.tiny_bitnet_layers import ROWS, register_rows, warm
from tasks.encoding import encode
from tasks.example import Task
from tasks.text import TextBytes

FOLDER = Path(__file__).parent / "tiny-bitnet"
SHORTEST = 192  # tokens; no example of every task fits less


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
    spread: float


class Stage(_Part):
    """Rows of one length and mixture, until so many tokens have been read."""

    until: int
    length: int
    piece: int | None = None
    step_tokens: int
    compiled: bool
    mix: dict[str, float]


class Plan(_Part):
    """train.yaml, whose comments explain every key."""

    model: Shape
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
        """Tokens of the whole run."""
        return self.stages[-1].until

    def stage(self, tokens: int) -> Stage:
        """The stage after so many tokens."""
        return next((stage for stage in self.stages if tokens < stage.until), self.stages[-1])

    def rate(self, tokens: int, step: int) -> float:
        """What the learning rates are multiplied by after so many tokens and steps."""
        places, rates = zip(*self.rates, strict=True)
        return min((step + 1) / self.warmup, float(np.interp(tokens, places, rates)))

    def quantised(self, tokens: int) -> float:
        """How far linears are quantised after so many tokens, from 0 to 1."""
        start, end = self.quantise
        return min(1.0, max(0.0, (tokens - start) / (end - start)))


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
        initializer_range=shape.spread,
        tie_word_embeddings=False,
    )
    model = BitNetForCausalLM(config)
    nn.init.normal_(model.model.embed_tokens.weight)  # as large as what the layers add to it, or it drowns in that
    nn.init.normal_(model.lm_head.weight, std=0.02)
    quantise(model)
    return model


class Training:
    """One run: model, optimizers, tokens read and processor time spent so far."""

    def __init__(self, plan: Plan, work: Path) -> None:
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
        """Seconds of processor time of this run and of those it resumes."""
        return self.before_s + time.process_time()

    @property
    def stage(self) -> Stage:
        """Where the run is."""
        return self.plan.stage(self.tokens)

    def advance(self) -> float:
        """One step; its loss."""
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

    def _loss(self, batch: Rows, stage: Stage) -> Tensor:
        stance, forward = ("default", self.compiled) if stage.compiled else ("force_eager", self.model)
        with torch.autocast("cpu", torch.bfloat16), torch.compiler.set_stance(stance):
            logits = forward(batch.ids, use_cache=False).logits
        losses = F.cross_entropy(logits[:, :-1].float().flatten(0, 1), batch.ids[:, 1:].flatten(), reduction="none")
        weights = batch.weights[:, 1:].flatten()
        return (losses * weights).sum() / weights.sum()

    def save(self) -> None:
        """State and model, each replaced in one move."""
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
        """Go on from the state in `work`.

        Raises ValueError where there is none, where it cannot be read, and where it is of another plan.
        """
        place = self.work / "state.pt"
        try:
            state = torch.load(place, weights_only=True)
        except FileNotFoundError as error:
            raise ValueError(f"--resume: there is no state in {self.work}; start without --resume") from error
        except (RuntimeError, EOFError, OSError, pickle.UnpicklingError) as error:
            raise ValueError(f"--resume: {place} cannot be read: it is damaged, or no state of this command") from error
        if state.get("plan") != self.plan.model_dump(mode="json"):
            raise ValueError(f"--resume: {place} is of another plan; take that plan, or another folder for --work")
        self.model.load_state_dict(state["model"])
        for (optimizer, _), stored in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(stored)
        self.step, self.tokens = state["step"], state["tokens"]
        self.before_s = state["cpu_s"] - time.process_time()

    def export(self, folder: Path) -> None:
        """The model for `from_pretrained`."""
        self.model.config.quantization_config = ONLINE
        self.model.save_pretrained(folder)


def _is_matrix(name: str, parameter: nn.Parameter) -> bool:
    """Whether it is of a quantised linear, which Muon trains."""
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
    """Bits per byte on held-out text, and accuracy of whole answers, as greedy decoding would give them.

    tasks: what accuracy is taken on, by name; `checks` if None.
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
    """Share of the tokens to be known that are the most likely ones in MQAR; elsewhere whether all of an answer are."""
    ids, labels = encode(task.example(index), TOKENIZER, learn="spans" if task.name == "mqar_text" else "answer")
    known = (labels[1:] >= 0) & (ids[1:] != TOKENIZER.eos_id)  # an answer is right whether or not it ends there
    hits = model(ids[None, :-1]).logits[0].argmax(-1)[known] == ids[1:][known]
    return hits.float().mean().item() if task.name == "mqar_text" else float(hits.all())


def read_plan(path: Path) -> Plan:
    """The plan in a file. Raises ValueError that names the key, the value and what is wrong with it."""
    values = read_mapping(path)
    try:
        return Plan.model_validate(values)
    except ValidationError as error:
        faults = (f"{dotted(fault['loc'])}: {show(fault['input'])}: {fault['msg']}" for fault in error.errors())
        raise ConfigError(list(faults), str(path)) from error


def main(arguments: Sequence[str] | None = None) -> int:
    """Train as the plan says."""
    parser = Parser(prog="python -m models.tiny_bitnet", description="Train the small BitNet.")
    parser.add_argument("--plan", type=Path, default=FOLDER / "train.yaml")
    parser.add_argument("--out", type=Path, default=FOLDER)
    parser.add_argument("--work", type=Path, required=True, help="folder for the state and the text")
    parser.add_argument("--every", type=count(1), default=500_000, help="tokens between evaluations")
    parser.add_argument("--examples", type=count(1), default=16, help="examples of each task in an evaluation")
    parser.add_argument("--resume", action="store_true")
    given = parser.parse_args(arguments)

    def work() -> int:
        for name in ("out", "work"):
            require_folder(getattr(given, name), f"--{name}")
        training = Training(read_plan(given.plan), given.work)
        if given.resume:
            training.load()
        _run(training, given)
        return 0

    return run(parser, work)


def _run(training: Training, given: argparse.Namespace) -> None:
    losses: list[float] = []
    given.out.mkdir(parents=True, exist_ok=True)
    log, mode = given.out / "log.jsonl", "a" if given.resume else "w"  # the log there is kept until there is a line
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


def _record(training: Training, length: int, losses: list[float], log: TextIO, examples: int) -> None:
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
