"""The Mamba block as published: projection, short convolution, selective scan, gate, projection.

Gu and Dao 2023, Mamba, https://arxiv.org/abs/2312.00752, section 3.4 and figure 3. Names and shapes of the weights
match transformers' `MambaMixer`, so state dictionaries can be exchanged in both directions. Non-causal mode (not in the
paper): the scan runs in both directions with the same weights and the diagonal counts once; the convolution stays
causal.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from attentions.common.inputs import check_tokens, hide_padding
from attentions.common.settings import require
from attentions.recurrent.definition import naive_both_ways
from attentions.recurrent.mixers import CONVOLUTION, LINEAR, SILU, check_mixer, copy_weights
from attentions.recurrent.recurrence import published_steps, softplus
from attentions.recurrent.selective_scan import selective_scan
from attentions.recurrent.short_convolution import short_convolution
from attentions.recurrent.terms import Terms, at_least_float32, both_ways

MIXER = "transformers.models.mamba.modeling_mamba.MambaMixer"
PARTS = {"conv1d": CONVOLUTION, "act": SILU} | dict.fromkeys(("in_proj", "x_proj", "dt_proj", "out_proj"), LINEAR)
PIECE = 2048  # positions per piece without gradients; 4 MB per tensor, reused by every piece


class MambaBlock(nn.Module):
    """Mamba-1: inner width 2·model_dim, `states` entries per channel, steps through a projection of rank `rank`.

    Weights are drawn from the seed. Raises ValueError for sizes below one.
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
        """Create a block with copies of the weights of transformers' `MambaMixer`, in their dtypes and on its device.

        Raises ValueError for a mixer of another class (FalconMamba's normalises its terms), an activation other than
        SiLU, or an unknown part or weight.
        """
        check_mixer(mixer, MIXER, PARTS)
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
        copy_weights(mixer, block, "mixer")
        return block

    def to_hf(self) -> nn.Module:
        """Return transformers' `MambaMixer` with this block's weights; requires transformers.

        Raises ValueError if no such mixer exists: for a non-causal block, or an inner width that is not a multiple of
        the outer width.
        """
        from transformers import MambaConfig
        from transformers.models.mamba.modeling_mamba import MambaMixer

        inner, model = self.out_proj.in_features, self.out_proj.out_features
        require(self.causal, "causal", self.causal, "True: transformers has no bidirectional mixer")
        require(inner % model == 0, "inner_dim", inner, f"a multiple of {model}")
        config = MambaConfig(
            hidden_size=model,
            state_size=self.states,
            expand=inner // model,
            conv_kernel=self.conv1d.kernel_size[0],
            time_step_rank=self.rank,
            use_bias=self.in_proj.bias is not None,
            use_conv_bias=self.conv1d.bias is not None,
            num_hidden_layers=1,
        )
        mixer = MambaMixer(config, layer_idx=0)
        copy_weights(self, mixer, "block")
        return mixer

    def forward(self, x: Float[Tensor, "B N C"], *, first: Int[Tensor, " B"] | None = None) -> Float[Tensor, "B N C"]:
        """Run the whole block; positions before `first` are padding and give zeros.

        Raises ValueError for tokens or padding that do not fit the block.
        """
        check_tokens(x, self.in_proj.weight, first=first)
        if self.causal and not torch.is_grad_enabled():
            return self._in_pieces(x, first)
        u, gate, terms = self._terms(x, first)

        def scan(t: Terms) -> Tensor:
            return selective_scan(t.x, t.step, t.rate, t.b, t.c)[0]

        y = both_ways(terms, scan, causal=self.causal)[:, 0, 0]
        return hide_padding(self._out(y, u, gate), first, dim=1)

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
        u, gate, terms = block._terms(x.double(), first)
        y = naive_both_ways(terms, causal=self.causal)[:, 0, 0]
        return hide_padding(block._out(y, u, gate), first, dim=1)[:, rows]

    def _in_pieces(self, x: Tensor, first: Tensor | None) -> Tensor:
        """Run the causal block in pieces when no gradient is needed, so that intermediate results stay small.

        Each piece starts earlier by the positions the convolution looks back; those outputs are dropped.
        """
        state, outs, back = None, [], self.conv1d.kernel_size[0] - 1
        for start in range(0, max(x.shape[1], 1), PIECE):
            early = min(start, back)
            u, gate, t = self._terms(x[:, start - early : start + PIECE], first, start - early)
            u, gate = u[:, early:], gate[:, early:]
            values, steps, keys, queries = (
                t.x[:, :, early:],
                t.step[:, :, early:],
                t.b[:, :, early:],
                t.c[..., early:, :],
            )
            y, state = selective_scan(values, steps, t.rate, keys, queries, state)
            outs.append(hide_padding(self._out(y[:, 0, 0], u, gate), first, start, dim=1))
        return torch.cat(outs, dim=1)

    def _terms(self, x: Tensor, first: Tensor | None, start: int = 0) -> tuple[Tensor, Tensor, Terms]:
        """Return the convolved input, the gate and the scan's terms; entry 0 of x is position `start`."""
        u, gate = hide_padding(self.in_proj(hide_padding(x, first, start, 1)), first, start, 1).chunk(2, dim=-1)
        u = hide_padding(short_convolution(u, self.conv1d.weight, self.conv1d.bias), first, start, 1)
        low, b, c = self.x_proj(u).split((self.rank, self.states, self.states), dim=-1)
        dtype = at_least_float32(u.dtype)
        step, rate = softplus(self.dt_proj(low).to(dtype)), -self.A_log.to(dtype).exp()
        b, x, step = (y.to(dtype)[:, None] for y in (b, u, step))
        return u, gate, Terms(c.to(dtype)[:, None, None], b, x, step, rate[None])

    def _out(self, y: Tensor, u: Tensor, gate: Tensor) -> Tensor:
        """Skip connection, gate and output projection; the states' precision is kept up to the projection."""
        return self.out_proj(((y + self.D.to(y.dtype) * u) * F.silu(gate)).to(u.dtype))
