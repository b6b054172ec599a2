"""The attention half of a layer: projection, any attention, memory if any, and the way back to the model's width."""

from __future__ import annotations

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from attentions import Attention, Stream, build, resolve, settings_of
from lsh_v2.configuration import ModelConfig
from lsh_v2.latent_attention import AbsorbedStream, LatentProjection
from lsh_v2.memory import SegmentedAttention, memories_of
from lsh_v2.memory.segments import SegmentStream
from lsh_v2.projection import GroupedProjection, Heads
from lsh_v2.rotary import Rotation


class Mixer(nn.Module):
    """x (B, N, d_model) to the same shape. `index` distinguishes the random draws of the layers."""

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
        """The layer's output and, in training, the attention's auxiliary loss."""
        heads = self.projection(x, at)
        if self.segmented is not None:
            out = self.segmented(self.attention, heads)
        else:
            out = self.attention(heads.q, heads.k, heads.v, first=first)
        return self.back(out), self._auxiliary_loss(heads, first)

    def back(self, out: Float[Tensor, "B H N E"]) -> Float[Tensor, "B N C"]:
        """From heads to the model's width."""
        return self.output(rearrange(out, "b h n e -> b n (h e)"))

    def stream(self, batch: int) -> MixerStream | None:
        """A fresh decoding state, None where the attention cannot decode."""
        if self.segmented is not None:
            return MixerStream(self, self.segmented.stream(self.attention))
        softmax = self.attention.exact and self.attention.approximates == "softmax"
        if self._absorbed and softmax and isinstance(self.projection, LatentProjection):
            return MixerStream(self, AbsorbedStream(self.projection, self.attention))
        state = self.attention.stream(batch)
        return None if state is None else MixerStream(self, state)

    def _auxiliary_loss(self, heads: Heads, first: Int[Tensor, " B"] | None) -> Float[Tensor, ""]:
        """The attention's own loss where it has one, on the real part of one sequence of the batch for its cost."""
        loss = getattr(self.attention, "auxiliary_loss", None)
        if loss is None or not (self.training and self._auxiliary) or not len(heads.q):
            return heads.q.new_zeros((), dtype=torch.float32)
        begin = 0 if first is None else int(first[0])
        if begin >= heads.q.shape[2]:
            return heads.q.new_zeros((), dtype=torch.float32)
        return loss(heads.q[:1, :, begin:], heads.k[:1, :, begin:]).float()


class MixerStream:
    """Decoding through one mixer, whatever its attention keeps."""

    def __init__(self, mixer: Mixer, state: Stream | SegmentStream | AbsorbedStream) -> None:
        self._mixer, self._state = mixer, state

    def extend(self, x: Float[Tensor, "B T C"], at: Rotation) -> Float[Tensor, "B T C"]:
        """Append T tokens and return their rows."""
        if isinstance(self._state, AbsorbedStream):
            return self._mixer.back(self._state.extend(x, at))
        heads = self._mixer.projection(x, at)
        if isinstance(self._state, SegmentStream):
            return self._mixer.back(self._state.extend(heads))
        return self._mixer.back(self._state.extend(heads.q, heads.k, heads.v))

    def reorder(self, index: Int[Tensor, " B"]) -> None:
        """Keep the sequences that `index` names, in its order."""
        self._state.reorder(index)

    @property
    def state_bytes(self) -> int:
        """Bytes that the state holds now."""
        return self._state.state_bytes


def attention_of(config: ModelConfig, seed: int) -> Attention:
    """The backend that a configuration names, of its sizes; `bucket_size` goes where the backend has such a setting."""
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
