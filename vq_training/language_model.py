"""Trains the layer in the section `vq` of conf.yml to predict the next byte of text.

    python -m harness.sweep conf.yml --section vq
    python -m harness.sweep conf.yml --section vq --set vq.d_model=128 --set vq.steps=50 --set vq.lr=1.0e-3

The model is one residual `VQAttentionQK` between an embedding with sinusoidal positions and a linear head. Each step
uses `global_batch_size` sequences of `sequence_len` bytes and AdamW at `lr`, on `device`. After `steps` steps, further
steps are timed. The row holds the held-out loss before and after, and is wrong if the loss has not fallen.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Unpack

import psutil
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from attentions.vq_qk import VQQK
from harness.subjects.base import CheckResult, Trial, Unsupported
from tasks.text import TextBytes
from transformer_vq.nn.attn_vq import VQAttentionQK
from transformer_vq.nn.config_spec import TransformerConfig

if TYPE_CHECKING:
    from attentions.common.settings import Shape
    from harness.common.rows import Case
    from harness.subjects.references import Store

HERE = "vq_training.language_model"
BYTES = 256
HELD_OUT = 0  # seed of the held-out text
COPIES = 4  # copies of each weight in training: itself, its gradient, and two moments


def grid(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the keys of conf.yml that measure the section. Raises ValueError for sizes that do not fit in memory."""
    config = TransformerConfig(**settings)
    if not config.causal:
        raise ValueError(
            "vq.causal: false is not allowed here; the model predicts the next byte, so it must not see it"
        )
    if (needed := least_bytes(config)) > (there := psutil.virtual_memory().total):
        raise ValueError(f"vq: training such a layer takes at least {needed} bytes, but this machine has {there}")
    return {
        "subject": f"{HERE}:Training",
        "backends": [{"name": f"{HERE}:VQSection", "label": "VQAttentionQK", "section": settings}],
        "lengths": config.sequence_len,
        "batch": config.global_batch_size,
        "heads": config.n_head,
        "kv_heads": None,
        "head_dim": config.key_dim,
        "value_dim": config.value_dim,
        "causal": True,
        "level": "layer",
        "mode": "train",
        "inputs": "text",
        "dtype": "float32",
        "device": config.device,
        "rounds": 1,
        "expect": {},
        "also": [],
    }


def least_bytes(config: TransformerConfig) -> int:
    """Minimum bytes in float32 of the layer's weights in training, its codebooks, and one step's logits."""
    c = config
    weights = c.d_model * c.n_head * (2 * c.key_dim + (3 if c.gated else 2) * c.value_dim) + 2 * BYTES * c.d_model
    codebooks = c.n_head * c.key_dim * (c.query_codes + c.key_codes)
    step = c.global_batch_size * c.sequence_len * (2 * c.d_model + BYTES)
    return 4 * (COPIES * weights + codebooks + step)


class VQSection(VQQK):
    """A harness series with the section of conf.yml as its settings, in `section`."""

    def __init__(self, heads: int, head_dim: int, *, section: dict[str, Any], **shape: Unpack[Shape]) -> None:
        super().__init__(heads, head_dim, **shape)
        self.section = TransformerConfig(**section)


class LanguageModel(nn.Module):
    """Maps bytes (B, N) to logits of the next byte (B, N, 256), and returns the layer's own loss."""

    positions: Tensor

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.embedding = nn.Embedding(BYTES, config.d_model)
        self.norms = nn.ModuleList(nn.LayerNorm(config.d_model) for _ in range(2))
        self.layer = VQAttentionQK(config)
        self.head = nn.Linear(config.d_model, BYTES)
        self.register_buffer("positions", sinusoids(config.sequence_len, config.d_model), persistent=False)

    def forward(self, ids: Int[Tensor, "B N"]) -> tuple[Float[Tensor, "B N V"], Float[Tensor, ""]]:
        x = self.embedding(ids) + self.positions[: ids.shape[1]]
        result = self.layer.run(self.norms[0](x))
        return self.head(self.norms[1](x + result.out)), result.loss


def sinusoids(length: int, width: int) -> Float[Tensor, "length width"]:
    """Return sines and cosines of each position, with wavelengths from 2π to 20,000π."""
    frequency = torch.exp(-math.log(10_000.0) * torch.arange(0, width, 2) / width)
    angle = torch.arange(length)[:, None] * frequency
    return torch.cat((angle.sin(), angle.cos()), dim=1)[:, :width]


class Training:
    """Harness subject that trains the layer."""

    def setup(self, case: Case, store: Store, key: str) -> Trial:
        del store, key
        try:
            return TrainingTrial(TransformerConfig(**case.settings["section"]), torch.device(case.device), case.seed)
        except ValueError as error:  # the text is too short for a batch
            raise Unsupported(str(error)) from error


class TrainingTrial(Trial):
    """A model trained for `steps` steps; each call runs one more."""

    def __init__(self, config: TransformerConfig, device: torch.device, seed: int) -> None:
        torch.manual_seed(seed)
        self.device, self.tokens = device, config.global_batch_size * config.sequence_len
        self._config, self._text, self._steps = config, TextBytes(), 0
        self.model = LanguageModel(config).to(device)
        self._optimizer = torch.optim.AdamW(self.model.parameters(), lr=config.lr)
        self.loss_before = self.held_out()
        self.losses = [float(self.step()) for _ in range(config.steps)]
        self.loss_after = self.held_out()

    def call(self, variant: int) -> Tensor:
        del variant
        return self.step()

    def check(self, variant: int, answer: Tensor) -> CheckResult:
        del variant
        metrics = {"loss_before": self.loss_before, "loss_after": self.loss_after}
        if not all(map(math.isfinite, (*metrics.values(), float(answer)))):
            return CheckResult(wrong=f"the loss is not finite: {metrics}, and {float(answer)} in the timed step")
        if self.loss_after >= self.loss_before:
            return CheckResult(metrics, f"the held-out loss rose from {self.loss_before:.4g} to {self.loss_after:.4g}")
        return CheckResult(metrics)

    def step(self) -> Tensor:
        """Run one step on new text; returns its loss in nats per byte, without the commitment loss."""
        self._steps += 1
        self.model.train()
        with torch.enable_grad():
            loss, commitment = self._loss(self._steps)
            self._optimizer.zero_grad()
            (loss + commitment).backward()
        self._optimizer.step()
        return loss.detach()

    @torch.no_grad()
    def held_out(self) -> float:
        """Return the held-out loss in nats per byte."""
        self.model.eval()
        return float(self._loss(HELD_OUT)[0])

    def _loss(self, seed: int) -> tuple[Tensor, Tensor]:
        n = self._config.sequence_len
        text = self._text.tokens(self._config.global_batch_size * (n + 1), seed=seed).view(-1, n + 1)
        text = text.long().to(self.device)
        logits, commitment = self.model(text[:, :-1])
        return F.cross_entropy(logits.flatten(0, 1), text[:, 1:].flatten()), commitment
