"""The language model: one embedding, passes over weight-tied layers, optional halting, and an output head.

This module only assembles the parts, each of which has its own file. Reversible layers use two residual streams, whose
mean is read at the end; other layers use the usual single stream.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from attentions.common.inputs import INTEGERS, holds_values
from attentions.common.settings import require
from lsh_v2.model.block import Block
from lsh_v2.model.loss import IGNORED, mean, token_losses
from lsh_v2.model.ponder import Chosen, Halting, Stopping, divergence, expected_steps, log_halting
from lsh_v2.model.reversible import Layer, Reading, middle, residual, reversible
from lsh_v2.model.rotary import Rotation, rotation, shifted
from lsh_v2.model.stream import ModelStream

if TYPE_CHECKING:
    from lsh_v2.common.configuration import ModelConfig


class LSHv2Model(nn.Module):
    """A decoder (or an encoder with `causal: false`) with the attention named in the configuration."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.embedding = nn.Embedding(config.vocab_size, config.d_model)
            self.blocks = nn.ModuleList(Block(config, index) for index in range(config.weight_sets))
            self.norm = nn.RMSNorm(config.d_model)
            self.halting = Halting(config.d_model, config.ponder_prior) if config.use_ponder else None
            initialise(self)

    def forward(
        self,
        input_ids: Int[Tensor, "B N"],
        labels: Int[Tensor, "B N"] | None = None,
        *,
        first: Int[Tensor, " B"] | None = None,
        logits_to_keep: int | None = None,
    ) -> dict[str, Tensor]:
        """Return `logits` (B, N, V), or those of the last `logits_to_keep` positions; none if it is 0.

        With `labels` (-100 is ignored; a causal model predicts each label from the tokens before it), also returns
        `loss` and `cross_entropy` in nats per label, and in training the other loss terms `ponder_kl` and
        `auxiliary_loss`. With pondering, also `expected_steps`, and at inference `steps` (B, N). `first` is the first
        real position of each left-padded row; positions before it, and their labels, have no effect. Raises ValueError
        for ids outside the vocabulary, sequences longer than `max_seq_len`, `first` together with a memory, and `first`
        out of range.
        """
        tokens = input_ids.ndim == 2 and input_ids.dtype in INTEGERS
        given = f"{input_ids.dtype} of shape {tuple(input_ids.shape)}"
        require(tokens, "input_ids", given, "integers of shape (batch, length)")
        self.check(input_ids.shape[1])
        require(first is None or not self.config.memory, "first", first, "None for a model with a memory")
        x, at = self.embed(input_ids), self.rotation(0, input_ids.shape[1])
        if first is not None:
            first = first.to(x.device)
            padding = self._padding(first, input_ids)
            x, at = x.masked_fill(padding.unsqueeze(-1), 0.0), shifted(at, first)
            if labels is not None:
                # No token precedes the first real one, so it cannot be predicted.
                before = torch.cat((padding[:, :1], padding[:, :-1]), dim=1)
                labels = labels.masked_fill(padding | before if self.config.causal else padding, IGNORED)
        out: dict[str, Tensor] = {}
        if self.training and self.halting is not None and labels is not None:
            state = self._ponder_training(x, at, first, labels, out)
        else:
            state = self._state(x, at, first, out)
            if labels is not None:
                out["cross_entropy"] = mean(self._losses(state, *self._targets(labels)))
                out["loss"] = out["cross_entropy"] + self.config.auxiliary_weight * out["auxiliary_loss"]
        keep = input_ids.shape[1] if logits_to_keep is None else logits_to_keep
        if keep:
            out["logits"] = self.head(state[:, -keep:])
        return out

    def stream(self, batch: int) -> ModelStream | None:
        """Return a fresh decoding state for `batch` sequences; None if the attention cannot decode."""
        made = [self.block(i).mixer.stream(batch) for i in range(self.config.n_layers)] if self.config.causal else []
        streams = [stream for stream in made if stream is not None]
        return ModelStream(self, streams) if len(streams) == self.config.n_layers else None

    def embed(self, input_ids: Int[Tensor, "B N"]) -> Float[Tensor, "B N C"]:
        """Return token embeddings of unit variance. Raises ValueError for ids outside the vocabulary."""
        last = self.config.vocab_size - 1
        if not input_ids.is_cuda and input_ids.numel() and holds_values(input_ids):  # on a GPU this would synchronise
            least, most = (int(x) for x in input_ids.aminmax())
            require(least >= 0 and most <= last, "input_ids", least if least < 0 else most, f"from 0 to {last}")
        return self.embedding(input_ids) * self.config.d_model**0.5

    def head(self, state: Float[Tensor, "B N C"]) -> Float[Tensor, "B N V"]:
        """Return the logits of states, with the embedding as output weights."""
        return F.linear(self.norm(state), self.embedding.weight)

    def read(self, x1: Float[Tensor, "B N C"], x2: Float[Tensor, "B N C"]) -> Float[Tensor, "B N C"]:
        """Combine the residual streams into one state."""
        return middle(x1, x2) if self.config.reversible else x2

    def block(self, layer: int) -> Block:
        """Return the set of weights that a layer uses."""
        block = self.blocks[layer % self.config.weight_sets]
        assert isinstance(block, Block), "blocks must hold Block modules"
        return block

    def rotation(self, start: int, count: int) -> Rotation:
        """Return the rotary angles of `count` positions from `start`."""
        c, weight = self.config, self.embedding.weight
        exact = torch.promote_types(weight.dtype, torch.float32)
        return rotation(start, count, c.rotary_dim, c.rope_base, device=weight.device, dtype=exact)

    def stopping(self) -> Stopping:
        """Return a fresh halting rule for inference."""
        c = self.config
        return Stopping(c.ponder_inference, c.ponder_threshold, c.passes)

    def check(self, length: int) -> None:
        """Raise ValueError if a sequence is longer than the model's maximum."""
        limit = self.config.max_seq_len
        require(1 <= length <= limit, "sequence length", length, f"from 1 to max_seq_len={limit}")

    def _padding(self, first: Tensor, input_ids: Tensor) -> Bool[Tensor, "B N"]:
        """Mask of the positions before each row's first real one."""
        batch, length = input_ids.shape
        fits = tuple(first.shape) == (batch,) and first.dtype in INTEGERS
        fits = fits and (first.is_cuda or bool(((first >= 0) & (first <= length)).all()))
        require(fits, "first", first.tolist(), f"{batch} integers from 0 to {length}")
        return torch.arange(length, device=first.device) < first[:, None]

    def _state(self, x: Tensor, at: Rotation, first: Tensor | None, out: dict[str, Tensor]) -> Float[Tensor, "B N C"]:
        """Return the state that predictions are read from: for each position, the state at which it halts."""
        c, chosen, total, state = self.config, Chosen(self.stopping()), x.new_zeros(()), x
        for state, auxiliary in self._passes(x, at, first):
            total = total + auxiliary
            if self.halting is not None and chosen.offer(state, self.halting(state)):
                break
        out["auxiliary_loss"] = total / c.n_layers
        if self.halting is None or chosen.steps is None:
            return state
        real = chosen.steps if first is None else chosen.steps[~self._padding(first, chosen.steps)]
        out["steps"], out["expected_steps"] = chosen.steps, mean(real.float())
        return chosen.state

    def _ponder_training(
        self, x: Tensor, at: Rotation, first: Tensor | None, labels: Tensor, out: dict[str, Tensor]
    ) -> Float[Tensor, "B N C"]:
        """Compute the expected loss over all steps, as in the paper; returns the state of the last step."""
        halting, (counted, targets) = self.halting, self._targets(labels)
        assert halting is not None, "called only with pondering"

        def look(state: Tensor) -> Float[Tensor, "two K"]:
            """Return the loss of each label and the halting log-odds at the position that predicts it."""
            return torch.stack((self._losses(state, counted, targets), halting(state)[:, : counted.shape[1]][counted]))

        weights = [*self.norm.parameters(), self.embedding.weight, *halting.parameters()]
        one_pass = [*self._layers(at, first), Reading(look, weights)]
        run = reversible if self.config.reversible else residual
        x1, x2, auxiliary, *read = run(one_pass * self.config.passes, x, x)
        losses, logits = torch.stack(read).unbind(1)
        log_p = log_halting(logits)
        out["cross_entropy"] = mean((log_p.exp() * losses).sum(0))
        out["ponder_kl"] = mean(divergence(log_p, self.config.ponder_prior))
        out["expected_steps"] = mean(expected_steps(log_p.detach()))
        out["auxiliary_loss"] = auxiliary / self.config.n_layers
        out["loss"] = (
            out["cross_entropy"]
            + self.config.ponder_weight * out["ponder_kl"]
            + self.config.auxiliary_weight * out["auxiliary_loss"]
        )
        return self.read(x1, x2)

    def _passes(
        self, x: Tensor, at: Rotation, first: Tensor | None
    ) -> Iterator[tuple[Float[Tensor, "B N C"], Float[Tensor, ""]]]:
        """Yield the state after each pass over the weight sets, or once after all layers without pondering."""
        layers, run = self._layers(at, first), reversible if self.config.reversible else residual
        x1 = x2 = x
        for _ in range(self.config.n_layers // len(layers)):
            x1, x2, auxiliary = run(layers, x1, x2)
            yield self.read(x1, x2), auxiliary

    def _layers(self, at: Rotation, first: Tensor | None) -> list[Layer]:
        """Return the layers of one pass."""
        each = self.config.weight_sets if self.config.use_ponder else self.config.n_layers
        return [self._layer(index, at, first) for index in range(each)]

    def _layer(self, index: int, at: Rotation, first: Tensor | None) -> Layer:
        block = self.block(index)
        attend, feed = partial(block.attend, at=at, first=first), block.feed
        if self.config.gradient_checkpoint and not self.config.reversible and torch.is_grad_enabled():
            attend, feed = (partial(checkpoint, half, use_reentrant=False) for half in (attend, feed))
        return Layer(attend, feed, block.attend_parameters(), block.feed_parameters())  # type: ignore[arg-type]

    def _targets(self, labels: Int[Tensor, "B N"]) -> tuple[Tensor, Tensor]:
        """Return a mask of positions that predict a counted label, (B, N) or (B, N - 1), and those labels in order."""
        wanted = labels[:, 1:] if self.config.causal else labels
        counted = wanted != IGNORED
        return counted, wanted[counted]

    def _losses(self, state: Tensor, counted: Tensor, targets: Tensor) -> Float[Tensor, " K"]:
        return token_losses(self.norm(state[:, : counted.shape[1]][counted]), self.embedding.weight, targets)


def initialise(model: LSHv2Model) -> None:
    """Initialise linear weights with variance 1/fan-in; output layers of residual branches are also scaled by depth."""
    c = model.config
    nn.init.normal_(model.embedding.weight, std=c.d_model**-0.5)
    for block in model.blocks:
        assert isinstance(block, Block), "blocks must hold Block modules"
        for part in (block.mixer.projection, block.feed_forward):  # an attention initialises its own weights
            for module in part.modules():
                if isinstance(module, nn.Linear):
                    nn.init.normal_(module.weight, std=module.in_features**-0.5)
        for module in (block.mixer.output, block.feed_forward.down):
            nn.init.normal_(module.weight, std=(module.in_features * 2 * c.n_layers) ** -0.5)
