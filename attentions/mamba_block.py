"""The Mamba block as published: projection, short convolution, selective scan, gate, projection.

Gu and Dao 2023, Mamba, https://arxiv.org/abs/2312.00752, section 3.4 and figure 3; names and shapes of the weights
are those of transformers' `MambaMixer`, so state dictionaries go both ways. Not causal (our addition): the scan runs
both ways over the same weights and the diagonal counts once; the convolution stays causal.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from attentions.base import require
from attentions.recurrence import (
    Terms,
    at_least_float32,
    both_ways,
    hide_padding,
    naive_both_ways,
    published_steps,
    softplus,
)
from attentions.selective_scan import selective_scan


def causal_convolution(x: Float[Tensor, "B N C"], convolution: nn.Conv1d) -> Float[Tensor, "B N C"]:
    """A depthwise convolution that sees the present and the positions before it, then SiLU."""
    width = convolution.kernel_size[0]
    padded = F.pad(x.transpose(1, 2), (width - 1, 0))
    out = F.conv1d(padded, convolution.weight, convolution.bias, groups=convolution.groups)
    return F.silu(out).transpose(1, 2)


class MambaBlock(nn.Module):
    """Mamba-1: inner width 2·model_dim, `states` entries a channel, steps through a projection of rank `rank`.

    Raises ValueError for sizes below one. Weights are drawn from the seed.
    """

    def __init__(
        self,
        model_dim: int,
        *,
        inner_dim: int | None = None,
        states: int = 16,
        width: int = 4,
        rank: int | None = None,
        bias: bool = False,
        conv_bias: bool = True,
        causal: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__()
        inner = 2 * model_dim if inner_dim is None else inner_dim
        self.rank = -(-model_dim // 16) if rank is None else rank
        for name, size in {"model_dim": model_dim, "inner_dim": inner, "states": states, "rank": self.rank}.items():
            require(size >= 1, name, size, "an integer of at least 1")
        self.states, self.causal = states, causal
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.in_proj = nn.Linear(model_dim, 2 * inner, bias=bias)
            self.conv1d = nn.Conv1d(inner, inner, width, groups=inner, bias=conv_bias)
            self.x_proj = nn.Linear(inner, self.rank + 2 * states, bias=False)
            self.dt_proj = nn.Linear(self.rank, inner)
            nn.init.uniform_(self.dt_proj.weight, -(self.rank**-0.5), self.rank**-0.5)
            self.dt_proj.bias = nn.Parameter(published_steps((inner,)))
            self.A_log = nn.Parameter(torch.arange(1.0, states + 1).log().repeat(inner, 1))
            self.D = nn.Parameter(torch.ones(inner))
            self.out_proj = nn.Linear(inner, model_dim, bias=bias)

    @classmethod
    def from_hf(cls, mixer: nn.Module) -> MambaBlock:
        """A block with the weights of transformers' `MambaMixer`; back: mixer.load_state_dict(block.state_dict()).

        Raises ValueError for a mixer whose activation is not SiLU.
        """
        activation = getattr(mixer, "activation", "silu")
        require(activation in ("silu", "swish"), "activation", activation, "silu")
        weights = mixer.state_dict()
        block = cls(
            weights["in_proj.weight"].shape[1],
            inner_dim=weights["A_log"].shape[0],
            states=weights["A_log"].shape[1],
            width=weights["conv1d.weight"].shape[2],
            rank=weights["dt_proj.weight"].shape[1],
            bias="in_proj.bias" in weights,
            conv_bias="conv1d.bias" in weights,
        )
        block.load_state_dict(weights)
        return block

    def forward(self, x: Float[Tensor, "B N C"], *, first: Int[Tensor, " B"] | None = None) -> Float[Tensor, "B N C"]:
        """The whole block; positions before `first` are padding and give zeros."""
        u, gate, terms = self._terms(x, first)

        def scan(t: Terms) -> Tensor:
            return selective_scan(t.x, t.step, t.rate, t.b, t.c)[0]

        y = both_ways(terms, scan, causal=self.causal)[:, 0, 0].to(u.dtype)
        return hide_padding(self._out(y, u, gate), first, dim=1)

    def naive(
        self,
        x: Float[Tensor, "B N C"],
        *,
        first: Int[Tensor, " B"] | None = None,
        rows: Int[Tensor, " R"] | None = None,
    ) -> Float[Tensor, "B R C"]:
        """The same block in float64 with the recurrence position by position."""
        block = copy.deepcopy(self).double()
        rows = torch.arange(x.shape[1], device=x.device) if rows is None else rows
        u, gate, terms = block._terms(x.double(), first)
        y = naive_both_ways(terms, causal=self.causal)[:, 0, 0]
        return hide_padding(block._out(y, u, gate), first, dim=1)[:, rows]

    def _terms(self, x: Tensor, first: Tensor | None) -> tuple[Tensor, Tensor, Terms]:
        u, gate = hide_padding(self.in_proj(hide_padding(x, first, dim=1)), first, dim=1).chunk(2, dim=-1)
        u = hide_padding(causal_convolution(u, self.conv1d), first, dim=1)
        low, b, c = self.x_proj(u).split((self.rank, self.states, self.states), dim=-1)
        dtype = at_least_float32(u.dtype)
        step, rate = softplus(self.dt_proj(low).to(dtype)), -self.A_log.to(dtype).exp()
        b, x, step = (y.to(dtype)[:, None] for y in (b, u, step))
        return u, gate, Terms(c.to(dtype)[:, None, None], b, x, step, rate[None])

    def _out(self, y: Tensor, u: Tensor, gate: Tensor) -> Tensor:
        return self.out_proj((y + self.D * u) * F.silu(gate))
