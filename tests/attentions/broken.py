"""Attentions that are wrong on purpose, each with the checks of the contract that must notice."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attentions.base import Attention
from attentions.common.cache import CachedStream
from attentions.common.problem import Cost, Problem
from attentions.vanilla import Vanilla

if TYPE_CHECKING:
    from attentions.common.stream import Stream


class Exact(Attention):
    """A right answer by the definition; the classes below each break one thing of it."""

    paper = "https://arxiv.org/abs/1706.03762"
    exact = True
    claimed_time = "n^2"

    def forward(self, q: Tensor, k: Tensor, v: Tensor, *, first: Tensor | None = None) -> Tensor:
        return Attention.target(self, q, k, v, first=first).to(q.dtype)

    def stream(self, batch: int) -> Stream | None:
        return CachedStream(self, batch) if self.causal else None


class Offset(Exact):
    """Adds a hundredth to every output."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, *, first: Tensor | None = None) -> Tensor:
        return super().forward(q, k, v, first=first) + 1e-2


class Upcast(Exact):
    """Returns float64 whatever came in."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, *, first: Tensor | None = None) -> Tensor:
        return super().forward(q, k, v, first=first).double()


class Scribbler(Exact):
    """Scales the queries in place."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, *, first: Tensor | None = None) -> Tensor:
        out = super().forward(q, k, v, first=first)
        q.data.mul_(1.5)
        return out


class Dice(Exact):
    """Draws noise from the global generator."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, *, first: Tensor | None = None) -> Tensor:
        out = super().forward(q, k, v, first=first)
        return out * (1 + 1e-13 * torch.randn_like(out))


class Ungrouped(Exact):
    """Pairs the wrong query heads with a key head."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, *, first: Tensor | None = None) -> Tensor:
        tiles = q.shape[1] // k.shape[1]
        return super().forward(q, k.repeat(1, tiles, 1, 1), v.repeat(1, tiles, 1, 1), first=first)


class Pairs(Exact):
    """Takes it for granted that two query heads share a key head."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, *, first: Tensor | None = None) -> Tensor:
        shared = torch.arange(q.shape[1]) // 2 % k.shape[1]
        return super().forward(q, k[:, shared], v[:, shared], first=first)


class Attends(Exact):
    """Attends to the padding."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, *, first: Tensor | None = None) -> Tensor:
        return super().forward(q, k, v)


class Detached(Exact):
    """Loses the gradient of the keys."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, *, first: Tensor | None = None) -> Tensor:
        return super().forward(q, k.detach(), v, first=first)


class Leaky(Exact):
    """Lets a trace of the mean of all values into every row."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, *, first: Tensor | None = None) -> Tensor:
        mean = v.mean(2, keepdim=True).repeat_interleave(q.shape[1] // v.shape[1], dim=1)
        return super().forward(q, k, v, first=first) + 1e-6 * mean


class Fragile(Exact):
    """Softmax without taking the largest score away first."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, *, first: Tensor | None = None) -> Tensor:
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
        weights = (q @ k.mT * self.scale).exp().tril(k.shape[2] - q.shape[2])
        return weights @ v / weights.sum(-1, keepdim=True)


class Additive(Exact):
    """Hides the future by a product with zero, through which NaN passes."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, *, first: Tensor | None = None) -> Tensor:
        return super().forward(q, k + 0 * k.sum(2, keepdim=True), v, first=first)


class Miscounts(Vanilla):
    """Reports half of its comparisons."""

    def comparisons(self, q: Tensor, k: Tensor) -> Tensor:
        return super().comparisons(q, k) // 2


class Forgets(Exact):
    """Its stream starts afresh with every piece."""

    def stream(self, batch: int) -> Stream | None:
        attention = self

        class Amnesia(CachedStream):
            def advance(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
                return attention(q, k, v)

        return Amnesia(self, batch)


class Mute(Exact):
    """Says nothing where it should say why not."""

    def why_not(self, problem: Problem) -> Any:
        return None


class Free(Exact):
    """Claims to get cheaper with length."""

    def cost(self, problem: Problem) -> Cost:
        return Cost(flops=10**9 // problem.keys, comparisons=10**9, state_bytes=10**9)


class Sums(Exact):
    """Its layer adds the input once more than the layer's definition says."""

    def block(self, model_dim: int) -> nn.Module:
        layer = super().block(model_dim)
        layer.register_forward_hook(lambda module, inputs, output: output + inputs[0])
        return layer


class Clipped(Exact):
    """Looks at the last 400 keys only, right on anything shorter."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, *, first: Tensor | None = None) -> Tensor:
        out = super().forward(q, k, v, first=first)
        return F.pad(out[:, :, :400], (0, 0, 0, max(0, out.shape[2] - 400)))


class Trusting(Exact):
    """Takes its inputs as they come, unchecked."""

    __call__ = nn.Module.__call__

    def forward(self, q: Tensor, k: Tensor, v: Tensor, *, first: Tensor | None = None) -> Tensor:
        return self.target(q, k, v, first=first).to(q.dtype)


class Shortcut(Trusting):
    """Gives its queries back where there is nothing to attend to."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, *, first: Tensor | None = None) -> Tensor:
        return super().forward(q, k, v, first=first) if q.numel() else q


class Autocast(Trusting):
    """Lets autocast round its scores."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, *, first: Tensor | None = None) -> Tensor:
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
        scores = (
            (q @ k.mT * self.scale)
            .double()
            .masked_fill(
                ~torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril(k.shape[2] - q.shape[2]), -torch.inf
            )
        )
        return (scores.softmax(-1) @ v.double()).to(q.dtype)


class Frozen(Exact):
    """Its stream counts in a tensor that it makes in whatever mode it is called."""

    def stream(self, batch: int) -> Stream | None:
        class Counting(CachedStream):
            pieces: Tensor | None = None

            def extend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
                self.pieces = q.new_zeros(1) if self.pieces is None else self.pieces
                self.pieces += 1
                return super().extend(q, k, v)

        return Counting(self, batch)


CASES: dict[type[Attention], set[str]] = {
    Offset: {"agrees_with_naive", "padding_changes_nothing", "same_dtype_shape_and_device"},
    Upcast: {"same_dtype_shape_and_device"},
    Scribbler: {"inputs_and_state_are_untouched"},
    Dice: {"inputs_and_state_are_untouched", "seed_decides"},
    Ungrouped: {"agrees_with_naive"},
    Pairs: {"ungrouped_heads_agree"},
    Attends: {"padding_changes_nothing", "padding_alone_gives_zeros"},
    Detached: {"gradients_agree_with_naive"},
    Leaky: {"prefix_is_unchanged", "future_changes_nothing", "no_gradient_from_the_future"},
    Fragile: {"extreme_inputs_stay_finite"},
    Additive: {"future_nan_stays_there"},
    Miscounts: {"comparisons_are_counted"},
    Forgets: {"streams_like_forward"},
    Mute: {"says_why_not"},
    Free: {"cost_is_positive"},
    Sums: {"layer_agrees_with_its_naive"},
    Clipped: {"agrees_with_naive"},
    Trusting: {"refuses_what_disagrees", "padding_may_hold_anything"},
    Shortcut: {"empty_gives_empty"},
    Autocast: {"autocast_changes_nothing"},
    Frozen: {"inference_mode_ends_nowhere"},
}
