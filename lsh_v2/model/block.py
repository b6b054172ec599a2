"""A transformer layer in two halves, as reversible stacks need it: normalised attention and normalised feed-forward."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jaxtyping import Float, Int
from torch import Tensor, nn

from lsh_v2.model.feed_forward import FeedForward
from lsh_v2.model.mixer import Mixer

if TYPE_CHECKING:
    from lsh_v2.common.configuration import ModelConfig
    from lsh_v2.model.rotary import Rotation


class Block(nn.Module):
    """One set of layer weights. Each half returns its update to the residual stream."""

    def __init__(self, config: ModelConfig, index: int) -> None:
        super().__init__()
        self.mixer_norm = nn.RMSNorm(config.d_model)
        self.mixer = Mixer(config, index)
        self.feed_forward_norm = nn.RMSNorm(config.d_model)
        self.feed_forward = FeedForward(config.d_model, config.feed_forward_width, chunk=config.feed_forward_chunk)

    def attend(
        self, x: Float[Tensor, "B N C"], at: Rotation, first: Int[Tensor, " B"] | None = None
    ) -> tuple[Float[Tensor, "B N C"], Float[Tensor, ""]]:
        """Return the update of the attention half and its auxiliary loss."""
        return self.mixer(self.mixer_norm(x), at, first)

    def feed(self, x: Float[Tensor, "B N C"]) -> Float[Tensor, "B N C"]:
        """Return the update of the feed-forward half."""
        return self.feed_forward(self.feed_forward_norm(x))

    def attend_parameters(self) -> list[nn.Parameter]:
        """Return the weights that `attend` uses."""
        return [*self.mixer_norm.parameters(), *self.mixer.parameters()]

    def feed_parameters(self) -> list[nn.Parameter]:
        """Return the weights that `feed` uses."""
        return [*self.feed_forward_norm.parameters(), *self.feed_forward.parameters()]
