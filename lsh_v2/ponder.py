"""PonderNet: after each pass over the layers, every position decides whether to halt.

Banino et al. 2021, PonderNet, https://arxiv.org/abs/2107.05407: step n halts with lambda_n, so that
p_n = lambda_n · prod over j < n of (1 - lambda_j), the last step taking the remainder. Training minimises
sum of p_n · loss_n + beta · KL(p ‖ geometric), in this direction: the paper's, not that of its best-known
re-implementation. Inference halts by threshold (the first step whose cumulated p reaches it) or by drawing.

Halting is decided for each position from its own state, which keeps a causal model causal. Positions that have halted
go on through the passes that others need, as in training, so that later positions find the keys they were trained on.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from attentions.recurrence_terms import at_least_float32


class Halting(nn.Module):
    """log-odds of halting from a state; starts at the prior's rate at every position."""

    def __init__(self, width: int, prior: float) -> None:
        super().__init__()
        self.to_logit = nn.Linear(width, 1)
        nn.init.zeros_(self.to_logit.weight)
        nn.init.constant_(self.to_logit.bias, torch.logit(torch.tensor(prior)).item())

    def forward(self, state: Float[Tensor, "B N C"]) -> Float[Tensor, "B N"]:
        logit = self.to_logit(state).squeeze(-1)
        return logit.to(at_least_float32(logit.dtype))


def log_halting(logits: Float[Tensor, "S ..."]) -> Float[Tensor, "S ..."]:
    """log p_n of each step from the log-odds of halting there; the last step's own log-odds play no part."""
    stay = F.logsigmoid(-logits[:-1]).cumsum(0)
    reached = torch.cat((torch.zeros_like(logits[:1]), stay))
    halt = torch.cat((F.logsigmoid(logits[:-1]), torch.zeros_like(logits[-1:])))
    return reached + halt


def log_geometric(steps: int, rate: float, device: torch.device) -> Float[Tensor, " S"]:
    """log of rate·(1 - rate)^(n - 1) over 1 to `steps`, normalised to sum to one there."""
    n = torch.arange(steps, device=device, dtype=torch.float64)
    return torch.log_softmax(n * torch.log1p(torch.tensor(-rate, dtype=torch.float64, device=device)), 0)


def divergence(log_p: Float[Tensor, "S ..."], rate: float) -> Float[Tensor, ...]:
    """KL(p ‖ truncated geometric) in nats, with p the halting distribution that log_p describes."""
    prior = log_geometric(log_p.shape[0], rate, log_p.device).to(log_p.dtype)
    return (log_p.exp() * (log_p - prior.view(-1, *[1] * (log_p.ndim - 1)))).sum(0)


def expected_steps(log_p: Float[Tensor, "S ..."]) -> Float[Tensor, ...]:
    """Mean number of steps, from 1."""
    n = torch.arange(1, log_p.shape[0] + 1, device=log_p.device, dtype=log_p.dtype)
    return (log_p.exp() * n.view(-1, *[1] * (log_p.ndim - 1))).sum(0)


class Stopping:
    """Inference: which positions halt now, step by step. `mode` is "threshold", "sample" or "all" (never early)."""

    def __init__(self, mode: Literal["threshold", "sample", "all"], threshold: float, steps: int) -> None:
        self._mode, self._threshold, self._left = mode, threshold, steps
        self._stay: Tensor | None = None

    def halts(self, logit: Float[Tensor, "B N"]) -> Bool[Tensor, "B N"]:
        """Whether each position stops at this step, had it not stopped before; all do at the last."""
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
    """Each position's state at the step where it halted, collected while passes go on."""

    def __init__(self, stopping: Stopping) -> None:
        self._stopping = stopping
        self._state: Tensor | None = None
        self.steps: Int[Tensor, "B N"] | None = None

    def offer(self, state: Float[Tensor, "B N C"], logit: Float[Tensor, "B N"]) -> bool:
        """Take the state of the positions that halt now; whether all have halted."""
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
        assert self._state is not None, "no step was offered"
        return self._state
