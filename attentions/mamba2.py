"""Mamba-2's state space duality as an attention: queries are C, keys B, values X; each head has one decay rate.

Dao and Gu 2024, Transformers are SSMs, https://arxiv.org/abs/2405.21060. `ssd` is the chunked algorithm of section 6
and listing 1. At kernel level the step comes from k by a fixed projection drawn from the seed; its bias and the rates
are initialised as in the paper. The skip connection D, the gate and its norm belong to the block (`Mamba2Block`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Unpack

import torch
from jaxtyping import Float
from torch import Tensor, nn

from attentions.common.settings import Shape, require
from attentions.recurrent.mamba2_block import Mamba2Block
from attentions.recurrent.recurrence import Recurrence, project, published_steps, softplus
from attentions.recurrent.ssd import CHUNK, kernel_name, ssd
from attentions.recurrent.terms import Terms

if TYPE_CHECKING:
    from attentions.common.problem import Cost, Problem

__all__ = ["Mamba2", "Mamba2Block"]


class Mamba2(Recurrence):
    """State space duality with a state of head_dim x value_dim per head; `chunk` affects only speed and memory."""

    paper = "https://arxiv.org/abs/2405.21060"

    def __init__(self, heads: int, head_dim: int, *, chunk: int = CHUNK, **shape: Unpack[Shape]) -> None:
        super().__init__(heads, head_dim, **shape)
        require(1 <= chunk <= 1024, "chunk", chunk, "an integer from 1 to 1024")  # scratch memory grows with its square
        self.chunk = chunk
        G, draw = self.kv_heads, self.draw()
        to_step = torch.randn(G, head_dim, 1, generator=draw, dtype=torch.float32)
        self.register_buffer("to_step", to_step * head_dim**-0.5)
        self.register_buffer("step_bias", published_steps((G, 1, 1), draw))
        self.register_buffer("rate", -(1 + 15 * torch.rand(G, 1, 1, generator=draw, dtype=torch.float32)))

    to_step: Tensor
    step_bias: Tensor
    rate: Tensor

    @property
    def states(self) -> int:
        return self.head_dim

    def terms(self, q: Float[Tensor, "B H N D"], k: Float[Tensor, "B G M D"], v: Float[Tensor, "B G M E"]) -> Terms:
        step = softplus(project(k, self.to_step) + self.step_bias.to(k.dtype))
        return Terms((q * self.scale).unflatten(1, (self.kv_heads, -1)), k, v, step, self.rate.to(k.dtype))

    def scan(
        self, terms: Terms, state: Float[Tensor, "B G E S"] | None = None
    ) -> tuple[Float[Tensor, "B G R N E"], Float[Tensor, "B G E S"]]:
        t = terms
        self.kernel = kernel_name(t.x.device)
        return ssd(t.x, t.step, t.rate, t.b, t.c, state, chunk=self.chunk)

    def cost(self, problem: Problem) -> Cost:
        """With chunks of Q: each query head costs 2·Q·D for scores, 2·Q·E for values and 2·D·E to read the state.

        Each key costs 2·D·E to write the state and Q for its decays. Without a causal mask the last N positions run
        twice. Keys before the queries are counted as if they had queries, because the kernel computes them.
        """
        p, Q = problem, self.chunk
        D, E = p.head_dim, p.value_dim
        again = 0 if p.causal else p.queries
        heads = p.heads * (2 * Q * (D + E) + 2 * D * E + Q) + p.kv_heads * (2 * D * E + Q)
        past = p.keys - p.queries
        return self.recurrence_cost(p, p.batch * heads * (p.keys + again), p.batch * heads * past)

    def block(self, model_dim: int) -> nn.Module:
        return Mamba2Block(model_dim, causal=self.causal, chunk=self.chunk, seed=self.seed)
