"""Mamba's selective scan as an attention: values are the input, keys control writes and queries control reads.

Gu and Dao 2023, Mamba, https://arxiv.org/abs/2312.00752. At kernel level, fixed projections drawn from the seed compute
B from k, C from q·scale, and the step from v through the paper's low-rank projection with its initialisation. The rates
are the paper's -1 to -S. The skip connection D and the gate belong to the block (`MambaBlock`), whose projections are
learnt.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Unpack

import torch
from jaxtyping import Float
from torch import Tensor, nn

from attentions.common.settings import Shape, require
from attentions.recurrent.mamba_block import MambaBlock
from attentions.recurrent.recurrence import Recurrence, project, published_steps, softplus
from attentions.recurrent.selective_scan import kernel_name, selective_scan
from attentions.recurrent.terms import Terms

if TYPE_CHECKING:
    from attentions.common.problem import Cost, Problem

__all__ = ["Mamba", "MambaBlock"]


class Mamba(Recurrence):
    """Selective scan with `states` state entries per value channel."""

    paper = "https://arxiv.org/abs/2312.00752"

    def __init__(self, heads: int, head_dim: int, *, states: int = 16, **shape: Unpack[Shape]) -> None:
        super().__init__(heads, head_dim, **shape)
        require(states >= 1, "states", states, "an integer of at least 1")
        self._states = states
        G, E, draw = self.kv_heads, self.value_dim, self.draw()
        self.rank = -(-E // 16)

        def normal(*size: int) -> Tensor:
            return torch.randn(size, generator=draw, dtype=torch.float32)

        self.register_buffer("to_b", normal(G, head_dim, states) * head_dim**-0.5)
        self.register_buffer("to_c", normal(heads, head_dim, states))
        self.register_buffer("step_down", normal(G, E, self.rank) * E**-0.5)
        uniform = torch.rand(G, self.rank, E, generator=draw, dtype=torch.float32)
        self.register_buffer("step_up", (2 * uniform - 1) * self.rank**-0.5)
        self.register_buffer("step_bias", published_steps((G, 1, E), draw))

    to_b: Tensor
    to_c: Tensor
    step_down: Tensor
    step_up: Tensor
    step_bias: Tensor

    @property
    def states(self) -> int:
        return self._states

    def terms(self, q: Float[Tensor, "B H N D"], k: Float[Tensor, "B G M D"], v: Float[Tensor, "B G M E"]) -> Terms:
        c = (project(q, self.to_c) * self.scale).unflatten(1, (self.kv_heads, -1))
        step = softplus(project(project(v, self.step_down), self.step_up) + self.step_bias.to(v.dtype))
        rate = -torch.arange(1, self.states + 1, dtype=v.dtype, device=v.device)
        return Terms(c, project(k, self.to_b), v, step, rate.expand(self.kv_heads, self.value_dim, -1))

    def scan(
        self, terms: Terms, state: Float[Tensor, "B G E S"] | None = None
    ) -> tuple[Float[Tensor, "B G R N E"], Float[Tensor, "B G E S"]]:
        t = terms
        self.kernel = kernel_name(t.x.device)
        return selective_scan(t.x, t.step, t.rate, t.b, t.c, state)

    def cost(self, problem: Problem) -> Cost:
        """Each key costs a decay (a product and an exponential, one each), an input and a multiply-add: 5·E·S in all.

        Each query head adds 2·E·S to read. Projections cost 2·D·S each for b and c, and 4·E·rank for the step. Without
        a causal mask the last N positions are scanned and read again.
        """
        p, S, E = problem, self.states, problem.value_dim
        again = 0 if p.causal else p.queries
        key = p.kv_heads * (5 * E * S + 2 * p.head_dim * S + 4 * E * self.rank)
        keys = key * p.keys + p.kv_heads * 5 * E * S * again
        queries = p.heads * (2 * E * S * (p.queries + again) + 2 * p.queries * p.head_dim * S)
        return self.recurrence_cost(p, p.batch * (keys + queries), p.batch * key * (p.keys - p.queries))

    def block(self, model_dim: int) -> nn.Module:
        return MambaBlock(model_dim, states=self.states, causal=self.causal, seed=self.seed)
