"""The attention half of a layer: input projection, any attention, optional memory, and output projection."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from attentions import Attention, Stream, build, resolve, settings_of
from lsh_v2.model.latent_attention import AbsorbedStream, LatentProjection
from lsh_v2.model.memory.segments import SegmentedAttention, SegmentStream, memories_of
from lsh_v2.model.projection import GroupedProjection, Heads

if TYPE_CHECKING:
    from lsh_v2.common.configuration import ModelConfig
    from lsh_v2.model.rotary import Rotation


class Mixer(nn.Module):
    """Maps x (B, N, d_model) to the same shape. `index` gives each layer its own random seed."""

    def __init__(self, config: ModelConfig, index: int) -> None:
        super().__init__()
        seed = config.seed + index
        self.attention = attention_of(config, seed)
        self.projection = LatentProjection(config) if config.latent else GroupedProjection(config)
        self.output = nn.Linear(config.n_heads * config.head_dim, config.d_model, bias=False)
        memories = memories_of(config, seed)
        self.segmented = SegmentedAttention(self.attention, memories, config.memory_segment) if memories else None
        self._absorbed = config.absorbed_decoding
        self._auxiliary = config.auxiliary_weight > 0

    def forward(
        self, x: Float[Tensor, "B N C"], at: Rotation, first: Int[Tensor, " B"] | None = None
    ) -> tuple[Float[Tensor, "B N C"], Float[Tensor, ""]]:
        """Return the layer's output and, in training, the attention's auxiliary loss."""
        heads = self.projection(x, at)
        if self.segmented is not None:
            out = self.segmented(self.attention, heads)
        else:
            out = self.attention(heads.q, heads.k, heads.v, first=first)
        return self.back(out), self._auxiliary_loss(heads, first)

    def back(self, out: Float[Tensor, "B H N E"]) -> Float[Tensor, "B N C"]:
        """Project the heads back to the model's width."""
        return self.output(rearrange(out, "b h n e -> b n (h e)"))

    def stream(self, batch: int) -> MixerStream | None:
        """Return a fresh decoding state, None if the attention cannot decode."""
        if self.segmented is not None:
            return MixerStream(self, self.segmented.stream(self.attention))
        softmax = self.attention.exact and self.attention.approximates == "softmax"
        if self._absorbed and softmax and isinstance(self.projection, LatentProjection):
            return MixerStream(self, AbsorbedStream(self.projection, self.attention))
        state = self.attention.stream(batch)
        return None if state is None else MixerStream(self, state)

    def _auxiliary_loss(self, heads: Heads, first: Int[Tensor, " B"] | None) -> Float[Tensor, ""]:
        """Return the attention's own loss, if any, on the real part of one sequence only, to limit its cost."""
        loss = getattr(self.attention, "auxiliary_loss", None)
        if loss is None or not (self.training and self._auxiliary) or not len(heads.q):
            return heads.q.new_zeros((), dtype=torch.float32)
        begin = 0 if first is None else int(first[0])
        if begin >= heads.q.shape[2]:
            return heads.q.new_zeros((), dtype=torch.float32)
        return loss(heads.q[:1, :, begin:], heads.k[:1, :, begin:]).float()


class MixerStream:
    """Decodes through one mixer, with whatever state its attention keeps."""

    def __init__(self, mixer: Mixer, state: Stream | SegmentStream | AbsorbedStream) -> None:
        self._mixer, self._state = mixer, state

    def extend(self, x: Float[Tensor, "B T C"], at: Rotation) -> Float[Tensor, "B T C"]:
        """Append T tokens and return their outputs."""
        if isinstance(self._state, AbsorbedStream):
            return self._mixer.back(self._state.extend(x, at))
        heads = self._mixer.projection(x, at)
        if isinstance(self._state, SegmentStream):
            return self._mixer.back(self._state.extend(heads))
        return self._mixer.back(self._state.extend(heads.q, heads.k, heads.v))

    def reorder(self, index: Int[Tensor, " B"]) -> None:
        """Keep the sequences in `index`, in that order."""
        self._state.reorder(index)

    @property
    def state_bytes(self) -> int:
        """Current size of the state in bytes."""
        return self._state.state_bytes


def attention_of(config: ModelConfig, seed: int) -> Attention:
    """Build the backend named in a configuration; `bucket_size` is passed on if the backend has such a setting."""
    known = settings_of(resolve(config.attention))
    size = next((name for name in ("bucket_size", "window") if name in known), None)
    settings = ({} if size is None else {size: config.bucket_size}) | config.attention_settings
    return build(
        config.attention,
        heads=config.n_heads,
        head_dim=config.key_dim,
        kv_heads=config.n_kv_heads,
        value_dim=config.head_dim,
        causal=config.causal,
        max_len=config.max_seq_len,
        seed=seed,
        **settings,
    )
