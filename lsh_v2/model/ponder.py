"""PonderNet: after each pass over the layers, every position decides whether to halt.

Banino et al. 2021, PonderNet, https://arxiv.org/abs/2107.05407: step n halts with probability lambda_n, so that
p_n = lambda_n · prod over j < n of (1 - lambda_j), and the last step takes the remainder. Training minimises
sum of p_n · loss_n + beta · KL(p ‖ geometric). This is the paper's direction of the KL divergence; the best-known
reimplementation uses the other. Inference halts at the first step whose cumulative p reaches a threshold, or by
sampling.

Each position decides from its own state, so a causal model stays causal. Positions that have halted still run through
the passes that other positions need, as in training, so that later positions see the keys they were trained on.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from attentions.recurrent.terms import at_least_float32


class Halting(nn.Module):
    """Computes the log-odds of halting from a state; initialised to the prior's rate at every position."""

    def __init__(self, width: int, prior: float) -> None:
        super().__init__()
        self.to_logit = nn.Linear(width, 1)
        nn.init.zeros_(self.to_logit.weight)
        nn.init.constant_(self.to_logit.bias, torch.logit(torch.tensor(prior)).item())

    def forward(self, state: Float[Tensor, "B N C"]) -> Float[Tensor, "B N"]:
        logit = self.to_logit(state).squeeze(-1)
        return logit.to(at_least_float32(logit.dtype))


def log_halting(logits: Float[Tensor, "S ..."]) -> Float[Tensor, "S ..."]:
    """Return log p_n per step from the log-odds of halting; the last step's own log-odds are not used."""
    stay = F.logsigmoid(-logits[:-1]).cumsum(0)
    reached = torch.cat((torch.zeros_like(logits[:1]), stay))
    halt = torch.cat((F.logsigmoid(logits[:-1]), torch.zeros_like(logits[-1:])))
    return reached + halt


def log_geometric(steps: int, rate: float, device: torch.device) -> Float[Tensor, " S"]:
    """Return the log of rate·(1 - rate)^(n - 1) for n = 1 to `steps`, normalised to sum to one."""
    n = torch.arange(steps, device=device, dtype=torch.float64)
    return torch.log_softmax(n * torch.log1p(torch.tensor(-rate, dtype=torch.float64, device=device)), 0)


def divergence(log_p: Float[Tensor, "S ..."], rate: float) -> Float[Tensor, ...]:
    """KL(p ‖ truncated geometric) in nats, where log_p is the log of the halting distribution p."""
    prior = log_geometric(log_p.shape[0], rate, log_p.device).to(log_p.dtype)
    return (log_p.exp() * (log_p - prior.view(-1, *[1] * (log_p.ndim - 1)))).sum(0)


def expected_steps(log_p: Float[Tensor, "S ..."]) -> Float[Tensor, ...]:
    """Return the mean number of steps, counted from 1."""
    n = torch.arange(1, log_p.shape[0] + 1, device=log_p.device, dtype=log_p.dtype)
    return (log_p.exp() * n.view(-1, *[1] * (log_p.ndim - 1))).sum(0)


class Stopping:
    """Inference-time halting rule, applied step by step. `mode` is "threshold", "sample", or "all" (never early)."""

    def __init__(self, mode: Literal["threshold", "sample", "all"], threshold: float, steps: int) -> None:
        self._mode, self._threshold, self._left = mode, threshold, steps
        self._stay: Tensor | None = None

    def halts(self, logit: Float[Tensor, "B N"]) -> Bool[Tensor, "B N"]:
        """Return which positions halt at this step, ignoring earlier halts; all halt at the last step."""
        self._left -= 1
        if self._left == 0:
            return torch.ones_like(logit, dtype=torch.bool)
        if self._mode == "all":
            return torch.zeros_like(logit, dtype=torch.bool)
        if self._mode == "sample":
            return torch.rand_like(logit) < torch.sigmoid(logit)
        stay = torch.sigmoid(-logit)
        self._stay = stay if self._stay is None else self._stay * stay
        return 1 - self._stay >= self._threshold


class Chosen:
    """Collects each position's state at the step where it halts."""

    def __init__(self, stopping: Stopping) -> None:
        self._stopping = stopping
        self._state: Tensor | None = None
        self.steps: Int[Tensor, "B N"] | None = None

    def offer(self, state: Float[Tensor, "B N C"], logit: Float[Tensor, "B N"]) -> bool:
        """Update the states of the positions still running; returns whether all positions have halted."""
        halts = self._stopping.halts(logit)
        if self._state is None or self.steps is None:
            self._state, self._going = state, torch.ones_like(halts)
            self.steps = torch.zeros_like(logit, dtype=torch.long)
        self.steps = self.steps + self._going
        self._state = torch.where(self._going.unsqueeze(-1), state, self._state)
        self._going = self._going & ~halts
        return not bool(self._going.any())

    @property
    def state(self) -> Float[Tensor, "B N C"]:
        """The collected states."""
        assert self._state is not None, "at least one step is required"
        return self._state
