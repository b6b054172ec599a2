"""The Mamba-2 block as published: projection, short convolution, state space duality, gated norm, projection.

Dao and Gu 2024, Transformers are SSMs, https://arxiv.org/abs/2405.21060, section 7. Names and shapes of the weights
match transformers' `Mamba2Mixer`, so state dictionaries can be exchanged in both directions. Non-causal mode (not in
the paper): the scan runs in both directions with the same weights and the diagonal counts once; the convolution stays
causal.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from jaxtyping import Float, Int
from torch import Tensor, nn

from attentions.common.inputs import check_tokens, hide_padding
from attentions.common.settings import require
from attentions.recurrent.definition import naive_both_ways
from attentions.recurrent.mixers import CONVOLUTION, LINEAR, SILU, check_mixer, copy_weights
from attentions.recurrent.recurrence import published_steps, softplus
from attentions.recurrent.short_convolution import short_convolution
from attentions.recurrent.ssd import CHUNK, ssd
from attentions.recurrent.terms import Terms, at_least_float32, both_ways

MIXER = "transformers.models.mamba2.modeling_mamba2.Mamba2Mixer"
NORM = "transformers.models.mamba2.modeling_mamba2.MambaRMSNormGated"
PARTS = {"conv1d": CONVOLUTION, "act": SILU, "norm": (NORM,), "in_proj": LINEAR, "out_proj": LINEAR}


class GatedNorm(nn.Module):
    """Root mean square norm of x · SiLU(gate) over groups of channels."""

    def __init__(self, size: int, groups: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.groups, self.eps = groups, eps

    def forward(self, x: Float[Tensor, "B N C"], gate: Float[Tensor, "B N C"]) -> Float[Tensor, "B N C"]:
        """Return the normalised product; statistics are in float32 or wider."""
        dtype = at_least_float32(x.dtype)
        grouped = (x.to(dtype) * F.silu(gate.to(dtype))).unflatten(-1, (self.groups, -1))
        normed = grouped * torch.rsqrt(grouped.square().mean(-1, keepdim=True) + self.eps)
        return self.weight * normed.flatten(-2).to(x.dtype)


class Mamba2Block(nn.Module):
    """Mamba-2: inner width 2·model_dim in heads of `head_dim`; b and c are shared by the heads of a group.

    `head_dim=None` is the largest divisor of the inner width up to the paper's 64. Weights are drawn from the seed.
    Raises ValueError for sizes that do not divide each other.
    """

    def __init__(
        self,
        model_dim: int,
        *,
        inner_dim: int | None = None,
        head_dim: int | None = None,
        states: int = 128,
        groups: int = 1,
        width: int = 4,
        bias: bool = False,
        conv_bias: bool = True,
        eps: float = 1e-5,
        step_limit: tuple[float, float] = (0.0, float("inf")),
        chunk: int = CHUNK,
        causal: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.inner = 2 * model_dim if inner_dim is None else inner_dim
        self.head_dim = largest_divisor(self.inner, 64) if head_dim is None else head_dim
        self.heads, self.states, self.groups = self.inner // self.head_dim, states, groups
        require(self.inner % self.head_dim == 0, "head_dim", head_dim, f"a divisor of {self.inner}")
        require(self.heads % groups == 0, "groups", groups, f"a divisor of {self.heads} heads")
        self.step_limit, self.chunk, self.causal = step_limit, chunk, causal
        mixed = self.inner + 2 * groups * states
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.in_proj = nn.Linear(model_dim, self.inner + mixed + self.heads, bias=bias)
            self.conv1d = nn.Conv1d(mixed, mixed, width, groups=mixed, bias=conv_bias)
            self.dt_bias = nn.Parameter(published_steps((self.heads,)))
            self.A_log = nn.Parameter((1 + 15 * torch.rand(self.heads)).log())
            self.D = nn.Parameter(torch.ones(self.heads))
            self.norm = GatedNorm(self.inner, groups, eps)
            self.out_proj = nn.Linear(self.inner, model_dim, bias=bias)

    @classmethod
    def from_hf(cls, mixer: nn.Module) -> Mamba2Block:
        """Create a block with copies of the weights of transformers' `Mamba2Mixer`, in their dtypes and on its device.

        Raises ValueError for a mixer of another class (Zamba's, Bamba's, FalconH1's), an activation other than SiLU, or
        an unknown part or weight.
        """
        check_mixer(mixer, MIXER, PARTS)
        m: Any = mixer
        group = m.intermediate_size // m.n_groups
        require(m.norm.group_size == group, "mixer.norm.group_size", m.norm.group_size, str(group))
        weights = mixer.state_dict()
        block = cls(
            weights["in_proj.weight"].shape[1],
            inner_dim=m.intermediate_size,
            head_dim=m.head_dim,
            states=m.ssm_state_size,
            groups=m.n_groups,
            width=weights["conv1d.weight"].shape[2],
            bias="in_proj.bias" in weights,
            conv_bias="conv1d.bias" in weights,
            eps=m.norm.variance_epsilon,
            step_limit=tuple(m.time_step_limit),
        )
        copy_weights(mixer, block, "mixer")
        return block

    def to_hf(self) -> nn.Module:
        """Return transformers' `Mamba2Mixer` with this block's weights; requires transformers.

        Raises ValueError if no such mixer exists: for a non-causal block, or an inner width that is not a multiple of
        the outer width.
        """
        from transformers import Mamba2Config
        from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer

        model = self.out_proj.out_features
        require(self.causal, "causal", self.causal, "True: transformers has no bidirectional mixer")
        require(self.inner % model == 0, "inner_dim", self.inner, f"a multiple of {model}")
        config = Mamba2Config(
            hidden_size=model,
            num_heads=self.heads,
            head_dim=self.head_dim,
            state_size=self.states,
            expand=self.inner // model,
            n_groups=self.groups,
            conv_kernel=self.conv1d.kernel_size[0],
            use_bias=self.in_proj.bias is not None,
            use_conv_bias=self.conv1d.bias is not None,
            layer_norm_epsilon=self.norm.eps,
            time_step_limit=self.step_limit,
            num_hidden_layers=1,
        )
        mixer = Mamba2Mixer(config, layer_idx=0)
        copy_weights(self, mixer, "block")
        return mixer

    def forward(self, x: Float[Tensor, "B N C"], *, first: Int[Tensor, " B"] | None = None) -> Float[Tensor, "B N C"]:
        """Run the whole block; positions before `first` are padding and give zeros.

        Raises ValueError for tokens or padding that do not fit the block.
        """
        check_tokens(x, self.in_proj.weight, first=first)
        gate, terms = self._terms(x, first)

        def scan(t: Terms) -> Tensor:
            return ssd(t.x, t.step, t.rate, t.b, t.c, chunk=self.chunk)[0]

        return hide_padding(self._out(both_ways(terms, scan, causal=self.causal), terms, gate), first, dim=1)

    def naive(
        self,
        x: Float[Tensor, "B N C"],
        *,
        first: Int[Tensor, " B"] | None = None,
        rows: Int[Tensor, " R"] | None = None,
    ) -> Float[Tensor, "B R C"]:
        """Run the same block in float64, with the recurrence position by position."""
        check_tokens(x, self.in_proj.weight, first=first, rows=rows)
        block = copy.deepcopy(self).double()
        rows = torch.arange(x.shape[1], device=x.device) if rows is None else rows
        gate, terms = block._terms(x.double(), first)
        out = block._out(naive_both_ways(terms, causal=self.causal), terms, gate)
        return hide_padding(out, first, dim=1)[:, rows]

    def _terms(self, x: Tensor, first: Tensor | None) -> tuple[Tensor, Terms]:
        mixed = self.groups * self.states
        projected = hide_padding(self.in_proj(hide_padding(x, first, dim=1)), first, dim=1)
        gate, inner, step = projected.split((self.inner, self.inner + 2 * mixed, self.heads), dim=-1)
        inner = hide_padding(short_convolution(inner, self.conv1d.weight, self.conv1d.bias), first, dim=1)
        dtype = at_least_float32(x.dtype)
        x, b, c = inner.to(dtype).split((self.inner, mixed, mixed), dim=-1)
        step = softplus(step.to(dtype) + self.dt_bias.to(dtype)).clamp(*self.step_limit)
        b, c = (self._of_heads(y) for y in (b, c))
        x = rearrange(x, "b n (h e) -> b h n e", h=self.heads)
        rate = -self.A_log.to(dtype).exp()[:, None, None]
        return gate, Terms(c[:, :, None], b, x, rearrange(step, "b n h -> b h n 1"), rate)

    def _of_heads(self, y: Tensor) -> Tensor:
        """b or c per head; if all heads share one, the head axis stays one."""
        shared = 1 if self.groups == 1 else self.heads // self.groups
        return repeat(y, "b n (g s) -> b (g h) n s", g=self.groups, h=shared)

    def _out(self, y: Tensor, terms: Terms, gate: Tensor) -> Tensor:
        y = y[:, :, 0] + self.D.to(y.dtype)[:, None, None] * terms.x
        normed = self.norm(rearrange(y, "b h n e -> b n (h e)").to(gate.dtype), gate)
        return self.out_proj(normed.to(gate.dtype))  # the norm's weight may have another dtype


def largest_divisor(number: int, limit: int) -> int:
    """Return the largest divisor of `number` that is at most `limit`."""
    return next(d for d in range(min(limit, number), 0, -1) if number % d == 0)
