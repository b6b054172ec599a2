"""The language model: one embedding, passes over tied sets of layers, halting, one head.

Each part is a file of its own; this one only puts them together. Reversible layers run residuals in two streams, whose
mean is read at the end; without them there is the usual one.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from attentions.base import require
from attentions.inputs import INTEGERS, holds_values
from lsh_v2.block import Block
from lsh_v2.configuration import ModelConfig
from lsh_v2.loss import IGNORED, mean, token_losses
from lsh_v2.ponder import Chosen, Halting, Stopping, divergence, expected_steps, log_halting
from lsh_v2.reversible import Layer, Reading, middle, residual, reversible
from lsh_v2.rotary import Rotation, rotation, shifted
from lsh_v2.stream import ModelStream


class LSHv2Model(nn.Module):
    """A decoder, or with `causal: false` an encoder, on the attention that the configuration names."""

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
        """`logits` (B, N, V), or of the last `logits_to_keep` positions, none for 0.

        With `labels` (-100 is not counted; a causal model predicts each from the tokens before it) also `loss` and
        `cross_entropy` in nats a label, and in training its other terms `ponder_kl` and `auxiliary_loss`. With
        pondering `expected_steps`, and `steps` (B, N) at inference. `first` is the first real position of each
        left-padded row: what stands before it changes nothing, labels included, and its row is as it would be without.
        Raises ValueError for ids that are no tokens, for sequences longer than `max_seq_len`, for `first` with a
        memory, and for one out of range.
        """
        tokens = input_ids.ndim == 2 and input_ids.dtype in INTEGERS
        given = f"{input_ids.dtype} of shape {tuple(input_ids.shape)}"
        require(tokens, "input_ids", given, "integers of shape (batch, length)")
        self.check(input_ids.shape[1])
        require(first is None or not self.config.memory, "first", first, "None in a model with a memory")
        x, at = self.embed(input_ids), self.rotation(0, input_ids.shape[1])
        if first is not None:
            first = first.to(x.device)
            padding = self._padding(first, input_ids)
            x, at = x.masked_fill(padding.unsqueeze(-1), 0.0), shifted(at, first)
            if labels is not None:
                # The first real token has none before it that predicts it.
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
        """A fresh decoding state for `batch` sequences; None where the attention cannot decode."""
        made = [self.block(i).mixer.stream(batch) for i in range(self.config.n_layers)] if self.config.causal else []
        streams = [stream for stream in made if stream is not None]
        return ModelStream(self, streams) if len(streams) == self.config.n_layers else None

    def embed(self, input_ids: Int[Tensor, "B N"]) -> Float[Tensor, "B N C"]:
        """Token vectors of unit variance. Raises ValueError for ids that are no tokens of the vocabulary."""
        last = self.config.vocab_size - 1
        if not input_ids.is_cuda and input_ids.numel() and holds_values(input_ids):  # a GPU would have to be waited for
            least, most = (int(x) for x in input_ids.aminmax())
            require(least >= 0 and most <= last, "input_ids", least if least < 0 else most, f"from 0 to {last}")
        return self.embedding(input_ids) * self.config.d_model**0.5

    def head(self, state: Float[Tensor, "B N C"]) -> Float[Tensor, "B N V"]:
        """Logits of states, by the embedding's own weights."""
        return F.linear(self.norm(state), self.embedding.weight)

    def read(self, x1: Float[Tensor, "B N C"], x2: Float[Tensor, "B N C"]) -> Float[Tensor, "B N C"]:
        """The state that the residual streams stand for."""
        return middle(x1, x2) if self.config.reversible else x2

    def block(self, layer: int) -> Block:
        """The set of weights that a layer uses."""
        block = self.blocks[layer % self.config.weight_sets]
        assert isinstance(block, Block), "blocks holds blocks"
        return block

    def rotation(self, start: int, count: int) -> Rotation:
        """Angles of the positions from `start`."""
        c, weight = self.config, self.embedding.weight
        exact = torch.promote_types(weight.dtype, torch.float32)
        return rotation(start, count, c.rotary_dim, c.rope_base, device=weight.device, dtype=exact)

    def stopping(self) -> Stopping:
        """A fresh inference-time rule of halting."""
        c = self.config
        return Stopping(c.ponder_inference, c.ponder_threshold, c.passes)

    def check(self, length: int) -> None:
        """Raise ValueError for a sequence longer than the model was made for."""
        limit = self.config.max_seq_len
        require(1 <= length <= limit, "sequence length", length, f"from 1 to max_seq_len={limit}")

    def _padding(self, first: Tensor, input_ids: Tensor) -> Bool[Tensor, "B N"]:
        """Which positions stand before the first real ones."""
        batch, length = input_ids.shape
        fits = tuple(first.shape) == (batch,) and first.dtype in INTEGERS
        fits = fits and (first.is_cuda or bool(((first >= 0) & (first <= length)).all()))
        require(fits, "first", first.tolist(), f"{batch} integers from 0 to {length}")
        return torch.arange(length, device=first.device) < first[:, None]

    def _state(self, x: Tensor, at: Rotation, first: Tensor | None, out: dict[str, Tensor]) -> Float[Tensor, "B N C"]:
        """The state that predictions are read from: each position's where it halts."""
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
        """The expected loss over all steps, as the paper trains; returns the last step's state."""
        halting, (counted, targets) = self.halting, self._targets(labels)
        assert halting is not None, "called with pondering alone"

        def look(state: Tensor) -> Float[Tensor, "two K"]:
            """Loss of each label, and log-odds of halting where it is predicted."""
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
        """The state after each pass over the sets of weights (all layers at once without pondering)."""
        layers, run = self._layers(at, first), reversible if self.config.reversible else residual
        x1 = x2 = x
        for _ in range(self.config.n_layers // len(layers)):
            x1, x2, auxiliary = run(layers, x1, x2)
            yield self.read(x1, x2), auxiliary

    def _layers(self, at: Rotation, first: Tensor | None) -> list[Layer]:
        """Those of one pass."""
        each = self.config.weight_sets if self.config.use_ponder else self.config.n_layers
        return [self._layer(index, at, first) for index in range(each)]

    def _layer(self, index: int, at: Rotation, first: Tensor | None) -> Layer:
        block = self.block(index)
        attend, feed = partial(block.attend, at=at, first=first), block.feed
        if self.config.gradient_checkpoint and not self.config.reversible and torch.is_grad_enabled():
            attend, feed = (partial(checkpoint, half, use_reentrant=False) for half in (attend, feed))
        return Layer(attend, feed, block.attend_parameters(), block.feed_parameters())  # type: ignore[arg-type]

    def _targets(self, labels: Int[Tensor, "B N"]) -> tuple[Tensor, Tensor]:
        """Which positions predict a counted label, (B, N or N - 1), and those labels in order."""
        wanted = labels[:, 1:] if self.config.causal else labels
        counted = wanted != IGNORED
        return counted, wanted[counted]

    def _losses(self, state: Tensor, counted: Tensor, targets: Tensor) -> Float[Tensor, " K"]:
        return token_losses(self.norm(state[:, : counted.shape[1]][counted]), self.embedding.weight, targets)


def initialise(model: LSHv2Model) -> None:
    """Linear weights of variance 1/fan-in; those that end a residual branch divided by the root of their number."""
    c = model.config
    nn.init.normal_(model.embedding.weight, std=c.d_model**-0.5)
    for block in model.blocks:
        assert isinstance(block, Block), "blocks holds blocks"
        for part in (block.mixer.projection, block.feed_forward):  # an attention's own weights are its own business
            for module in part.modules():
                if isinstance(module, nn.Linear):
                    nn.init.normal_(module.weight, std=module.in_features**-0.5)
        for module in (block.mixer.output, block.feed_forward.down):
            nn.init.normal_(module.weight, std=(module.in_features * 2 * c.n_layers) ** -0.5)
