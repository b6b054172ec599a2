"""Projections from the model's width to heads, and the `Heads` that every attention receives."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from lsh_v2.model.rotary import Rotation, rotate

if TYPE_CHECKING:
    from lsh_v2.common.configuration import ModelConfig


class Heads(NamedTuple):
    """Queries, keys, and values of a range of tokens. The bare queries and keys carry no position."""

    q: Float[Tensor, "B H N D"]
    k: Float[Tensor, "B G N D"]
    v: Float[Tensor, "B G N E"]
    bare_q: Float[Tensor, "B H N F"]
    bare_k: Float[Tensor, "B G N F"]

    def stretch(self, start: int, end: int) -> Heads:
        """Return the tokens from `start` to `end`."""
        return Heads(*(x[:, :, start:end] for x in self))


class GroupedProjection(nn.Module):
    """Grouped-query projection with every coordinate rotated; used with `latent: false`.

    Ainslie et al. 2023, https://arxiv.org/abs/2305.13245.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.kv_heads, width = config.n_kv_heads, config.head_dim
        self.to_q = nn.Linear(config.d_model, config.n_heads * width, bias=False)
        self.to_kv = nn.Linear(config.d_model, config.n_kv_heads * 2 * width, bias=False)
        self.heads = config.n_heads

    def forward(self, x: Float[Tensor, "B N C"], at: Rotation) -> Heads:
        """Project x to heads; `at` holds the angles of its positions."""
        q = rearrange(self.to_q(x), "b n (h d) -> b h n d", h=self.heads)
        k, v = rearrange(self.to_kv(x), "b n (two g d) -> two b g n d", two=2, g=self.kv_heads)
        return Heads(rotate(q, at), rotate(k, at), v, q, k)
