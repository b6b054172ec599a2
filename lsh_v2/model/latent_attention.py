"""Multi-head latent attention with grouped queries: keys and values are expanded from one narrow latent per token.

DeepSeek-AI 2024, DeepSeek-V2, https://arxiv.org/abs/2405.04434, section 2.1: c = W_DKV h; k = [W_UK c; RoPE(W_KR h)],
where all heads share the rotary part; v = W_UV c; the latent is normalised. Here W_UK and W_UV produce G key/value
heads for H query heads (the paper has G = H). Any attention sees the expanded keys; hashing attentions hash these.

Decoding with exact softmax needs no expansion: (W_UK^T q)·c equals q·(W_UK c), so the cache stores only c and the
shared rotary key, d_c + d_R values per token, and W_UV is applied to the weighted mean of the latents.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from einops import einsum, rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from attentions.common.growing import Growing
from lsh_v2.model.projection import Heads
from lsh_v2.model.rotary import Rotation, rotate

if TYPE_CHECKING:
    from attentions import Attention
    from lsh_v2.common.configuration import ModelConfig


class LatentProjection(nn.Module):
    """Projects x to heads through the latent; `cached` and `expand` are its two halves for keys and values."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.heads, self.kv_heads = config.n_heads, config.n_kv_heads
        self.width, self.rotary = config.head_dim, config.rotary_dim
        latent, queries = config.kv_latent_dim, config.n_heads * (self.width + self.rotary)
        self.down = nn.Linear(config.d_model, latent + self.rotary, bias=False)
        self.norm = nn.RMSNorm(latent)
        self.up = nn.Linear(latent, config.n_kv_heads * 2 * self.width, bias=False)
        self.to_q = query_projection(config.d_model, queries, config.query_latent_dim)

    def forward(self, x: Float[Tensor, "B N C"], at: Rotation) -> Heads:
        """Project x to heads; `at` holds the angles of its positions."""
        bare_q, q = self.queries(x, at)
        bare_k, k, v = self.expand(*self.cached(x, at))
        return Heads(q, k, v, bare_q, bare_k)

    def queries(
        self, x: Float[Tensor, "B N C"], at: Rotation
    ) -> tuple[Float[Tensor, "B H N F"], Float[Tensor, "B H N D"]]:
        """Return queries without position, and the same queries with their rotary part appended."""
        q = rearrange(self.to_q(x), "b n (h d) -> b h n d", h=self.heads)
        bare, rotary = q.split((self.width, self.rotary), dim=-1)
        return bare, torch.cat((bare, rotate(rotary, at)), dim=-1)

    def cached(
        self, x: Float[Tensor, "B N C"], at: Rotation
    ) -> tuple[Float[Tensor, "B 1 N L"], Float[Tensor, "B 1 N R"]]:
        """Return everything that decoding must cache of x: the latent and the rotary key."""
        latent, rotary = self.down(x).split((self.norm.normalized_shape[0], self.rotary), dim=-1)
        # Under autocast the latent has lower precision than the norm's weight; torch has no kernel for that.
        return self.norm(latent.to(self.norm.weight.dtype))[:, None], rotate(rotary[:, None], at)

    def expand(
        self, latent: Float[Tensor, "B 1 N L"], rotary: Float[Tensor, "B 1 N R"]
    ) -> tuple[Float[Tensor, "B G N F"], Float[Tensor, "B G N D"], Float[Tensor, "B G N F"]]:
        """Return keys without position, keys with position, and values."""
        bare, v = rearrange(self.up(latent[:, 0]), "b n (two g d) -> two b g n d", two=2, g=self.kv_heads)
        return bare, torch.cat((bare, rotary.expand(-1, self.kv_heads, -1, -1)), dim=-1), v

    def up_matrices(self) -> tuple[Float[Tensor, "G F L"], Float[Tensor, "G F L"]]:
        """Return W_UK and W_UV of each key/value head."""
        keys, values = rearrange(self.up.weight, "(two g d) l -> two g d l", two=2, g=self.kv_heads)
        return keys, values


def query_projection(width: int, queries: int, latent: int | None) -> nn.Module:
    """Build the query projection: direct from the model's width, or through a normalised latent of its own."""
    if latent is None:
        return nn.Linear(width, queries, bias=False)
    down, up = nn.Linear(width, latent, bias=False), nn.Linear(latent, queries, bias=False)
    return nn.Sequential(down, nn.RMSNorm(latent), up)


class AbsorbedStream:
    """Decodes in the latent space: exact softmax attention over the cached latents and rotary keys.

    The first piece has no past and uses the attention module itself, which does not store scores.
    """

    def __init__(self, projection: LatentProjection, attention: Attention) -> None:
        self._projection, self._attention = projection, attention
        self._latents, self._rotary = Growing(), Growing()

    def extend(self, x: Float[Tensor, "B T C"], at: Rotation) -> Float[Tensor, "B H T E"]:
        """Append T tokens and return their outputs."""
        p, T, new = self._projection, x.shape[1], self._projection.cached(x, at)
        bare, q = p.queries(x, at)
        latent, rotary = self._latents.append(new[0]), self._rotary.append(new[1])
        if latent.shape[2] == T:
            _, k, v = p.expand(*new)
            return self._attention(q, k, v)
        of_keys, of_values = p.up_matrices()
        grouped = rearrange(bare, "b (g r) t d -> b g r t d", g=p.kv_heads)
        absorbed = einsum(grouped, of_keys, "b g r t d, g d l -> b g r t l").flatten(1, 2)
        mean = F.scaled_dot_product_attention(
            torch.cat((absorbed, q[..., p.width :]), dim=-1),
            torch.cat((latent, rotary), dim=-1),
            latent,
            attn_mask=None if T == 1 else past_mask(T, latent.shape[2], x.device),
            scale=self._attention.scale,
            enable_gqa=True,
        )
        mean = rearrange(mean, "b (g r) t l -> b g r t l", g=p.kv_heads)
        return einsum(mean, of_values, "b g r t l, g d l -> b g r t d").flatten(1, 2)

    def reorder(self, index: Int[Tensor, " B"]) -> None:
        """Keep the sequences in `index`, in that order."""
        self._latents.select(index)
        self._rotary.select(index)

    @property
    def state_bytes(self) -> int:
        """Current size of the cache in bytes."""
        return self._latents.bytes + self._rotary.bytes


def past_mask(queries: int, keys: int, device: torch.device) -> Tensor:
    """Causal mask (queries, keys) for the last `queries` of `keys` positions."""
    return torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)
