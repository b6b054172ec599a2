"""A transformer layer around an attention: projections, rotary positions and output projection."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from attentions.common.inputs import check_tokens
from attentions.common.settings import require_size

if TYPE_CHECKING:
    from attentions.base import Attention


def rotate(
    x: Float[Tensor, "B H N D"], base: float = 10_000.0, *, first: Int[Tensor, " B"] | None = None
) -> Float[Tensor, "B H N D"]:
    """Apply rotary position embedding, with halves paired as in GPT-NeoX; an odd last dimension is unchanged.

    Su et al. 2021, RoFormer, https://arxiv.org/abs/2104.09864, equation 34. Positions count from each row's first real
    token, `first`. Scores depend only on the difference of positions, but the hash of a key depends on its position.
    """
    half = x.shape[-1] // 2
    frequency = base ** (-torch.arange(half, device=x.device, dtype=torch.float64) / max(half, 1))
    position = torch.arange(x.shape[2], device=x.device)
    if first is not None:
        position = (position - first.to(x.device)[:, None, None]).clamp(min=0)  # (B, 1, N)
    angle = position[..., None] * frequency
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    a, b, rest = x.split((half, half, x.shape[-1] - 2 * half), dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin, rest), dim=-1)


class AttentionLayer(nn.Module):
    """Projections for q, k and v without bias, rotary positions, the attention, and an output projection.

    Weights are drawn from the attention's seed, so two layers with the same configuration are equal.
    """

    def __init__(self, model_dim: int, attention: Attention) -> None:
        super().__init__()
        require_size("model_dim", model_dim, 1)
        self.attention = attention
        a = attention
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(a.seed)
            self.to_q = nn.Linear(model_dim, a.heads * a.head_dim, bias=False)
            self.to_k = nn.Linear(model_dim, a.kv_heads * a.head_dim, bias=False)
            self.to_v = nn.Linear(model_dim, a.kv_heads * a.value_dim, bias=False)
            self.to_out = nn.Linear(a.heads * a.value_dim, model_dim, bias=False)

    def project(
        self, x: Float[Tensor, "B N C"], first: Int[Tensor, " B"] | None = None
    ) -> tuple[Float[Tensor, "B H N D"], Float[Tensor, "B G N D"], Float[Tensor, "B G N E"]]:
        """Return the attention's inputs: rotated queries and keys, and values."""
        q = rearrange(self.to_q(x), "b n (h d) -> b h n d", h=self.attention.heads)
        k = rearrange(self.to_k(x), "b n (g d) -> b g n d", g=self.attention.kv_heads)
        v = rearrange(self.to_v(x), "b n (g e) -> b g n e", g=self.attention.kv_heads)
        return rotate(q, first=first), rotate(k, first=first), v

    def forward(self, x: Float[Tensor, "B N C"], *, first: Int[Tensor, " B"] | None = None) -> Float[Tensor, "B N C"]:
        """Map x (B, N, model_dim) to the same shape; `first` as in `Attention.forward`.

        Raises ValueError for tokens or padding that do not fit the layer.
        """
        check_tokens(x, self.to_q.weight, first=first)
        return self.to_out(rearrange(self.attention(*self.project(x, first), first=first), "b h n e -> b n (h e)"))

    def naive(
        self,
        x: Float[Tensor, "B N C"],
        *,
        first: Int[Tensor, " B"] | None = None,
        rows: Int[Tensor, " R"] | None = None,
    ) -> Float[Tensor, "B R C"]:
        """Run the same layer with the attention's naive definition; the last steps are in float64."""
        check_tokens(x, self.to_q.weight, first=first, rows=rows)
        out = self.attention.naive(*self.project(x, first), first=first, rows=rows)
        return rearrange(out, "b h r e -> b r (h e)") @ self.to_out.weight.double().T
