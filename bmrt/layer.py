"""One layer's keys and values: at most a budget of them at rest, that and the chunk at hand while attention runs.

`update` shows attention all that is kept and the new tokens. `settle` comes right after attention, with its queries:
it scores, drops what there is no room for, and keeps the rest.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import pad
from transformers.cache_utils import CacheLayerMixin

from bmrt.plan import Plan
from bmrt.positions import Rotary
from bmrt.selection import keep, take
from bmrt.strategies.base import Strategy, View, wide


@dataclass(frozen=True)
class Moment:
    """What the forward pass at hand is like.

    `probe`: how many of its last tokens are only shown and not kept; `first` (B,): where each row's padding ends,
    None without padding.
    """

    probe: int = 0
    first: Tensor | None = None


class BoundedLayer(CacheLayerMixin):
    """What one layer keeps, for each sequence and key head its own tokens.

    `keys` and `values` (B, G, M, D), `positions` (B, G, M) in ascending order, `seen` how many tokens have gone by.
    With `rotary`, keys are kept as they are before rotation and stand at the places 0 to M - 1.
    """

    is_sliding = False
    keys: Any  # a Tensor once there is one; transformers has None before
    values: Any
    positions: Tensor
    scores: Tensor  # carried from chunk to chunk by a strategy that accumulates, empty otherwise
    queries: Tensor  # the latest, as many as the strategy observes

    def __init__(self, number: int, plan: Plan, strategy: Strategy, rotary: Rotary | None = None) -> None:
        super().__init__()
        self.number, self.plan, self.strategy, self.rotary = number, plan, strategy, rotary
        self.reset()

    def reset(self) -> None:
        self.is_initialized = False
        self.seen = self.judged = 0  # tokens so far; of these, how many `accumulate` has chosen from
        self.shown: tuple[Tensor, Tensor] | None = None  # what attention is looking at, None at rest
        self.moment = Moment()

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        # Copies, since an empty slice would keep the whole chunk's memory.
        self.keys, self.values = key_states[:, :, :0].clone(), value_states[:, :, :0].clone()
        self.queries = self.keys.clone()
        self.positions = torch.zeros(*key_states.shape[:2], 0, dtype=torch.int64, device=self.device)
        self.scores = wide(self.keys[..., 0])
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        kept = self.keys if self.rotary is None else self.rotary.rotate(self.keys, self._places(0, self.held))
        self.shown = torch.cat((kept, key_states), dim=2), torch.cat((self.values, value_states), dim=2)
        return self.shown

    @torch.no_grad()
    def settle(self, queries: Float[Tensor, "B H T D"], scale: float) -> None:
        """Keep what there is room for of all that attention has just looked at."""
        assert self.shown is not None, "attention has just looked at it"
        (keys, values), self.shown = self.shown, None
        arrived = queries.shape[2] - self.moment.probe
        self._append(keys, values, arrived)
        observed = self._observe(queries, arrived)
        limit, count = self.plan.limits(self.seen, arrived)
        if self.held > limit or self.strategy.accumulates:
            view = self._view(keys, observed, scale, count)
            scores = self._score(view)
            if self.strategy.accumulates:
                self.scores = scores
            if self.held > limit:
                self._drop(scores, view, count)

    @property
    def held(self) -> int:
        """M: tokens kept now."""
        return self.positions.shape[2] if self.is_initialized else 0

    @property
    def state_bytes(self) -> int:
        """Bytes of all that is kept between forward passes."""
        return sum(x.untyped_storage().nbytes() for x in self._tensors().values())

    def visible(self) -> Bool[Tensor, "B G T N"]:
        """Which of the keys in sight each new query may look at, where rows are padded on their left.

        A query that is padding sees itself, since attention to nothing is no number; nobody looks at its output.
        """
        assert self.shown is not None
        assert self.moment.first is not None
        N, T = self.shown[0].shape[2], self.shown[0].shape[2] - self.held
        new = torch.arange(self.seen, self.seen + T, device=self.device)
        positions = torch.cat((self.positions, new.expand(*self.positions.shape[:2], -1)), dim=2)
        own = torch.eye(T, N, dtype=torch.bool, device=self.device).roll(N - T, dims=1)
        causal = torch.ones(T, N, dtype=torch.bool, device=self.device).tril(N - T)
        return causal & (positions >= self.moment.first[:, None, None])[:, :, None] | own

    def get_seq_length(self) -> int:
        return self.seen

    def get_max_length(self) -> int:
        return -1

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """What is kept stands, for the mask, right before the new tokens: all of it visible, those causal."""
        return self.held + query_length, self.seen - self.held

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self.batch_select_indices(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the sequences that `indices` names, in its order."""
        self._each(lambda x: x[indices.to(x.device)])

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every sequence so many times."""
        self._each(lambda x: x.repeat_interleave(repeats, dim=0))

    def crop(self, tokens_to_remove: int) -> None:
        raise ValueError(f"crop({tokens_to_remove}) is not possible: what was dropped to make room cannot come back")

    def offload(self) -> None:
        self._each(lambda x: x.to("cpu", non_blocking=True))

    def prefetch(self) -> None:
        self._each(lambda x: x.to(self.device, non_blocking=True))

    def _tensors(self) -> dict[str, Tensor]:
        names = ("keys", "values", "positions", "scores", "queries") if self.is_initialized else ()
        return {name: getattr(self, name) for name in names}

    def _each(self, change: Callable[[Tensor], Tensor]) -> None:
        for name, x in self._tensors().items():
            setattr(self, name, change(x))

    def _places(self, start: int, stop: int) -> Tensor:
        """Where kept and new tokens stand in compact positions."""
        return torch.arange(start, stop, device=self.device)[None]

    def _append(self, keys: Tensor, values: Tensor, arrived: int) -> None:
        """Keep everything but a question that was only shown."""
        stop = self.held + arrived
        if self.rotary is not None:
            fresh = self.rotary.unrotate(keys[:, :, self.held :], self._places(self.held, keys.shape[2]))
            keys = torch.cat((self.keys, fresh), dim=2)
        self.keys, self.values = (x if stop == x.shape[2] else x[:, :, :stop].clone() for x in (keys, values))
        new = torch.arange(self.seen, self.seen + arrived, device=self.device)
        self.positions = torch.cat((self.positions, new.expand(*self.positions.shape[:2], -1)), dim=2)
        if self.strategy.accumulates:
            self.scores = pad(self.scores, (0, arrived))
        self.seen += arrived

    def _observe(self, queries: Tensor, arrived: int) -> Tensor:
        """The queries that the strategy looks with: a question's, this chunk's, or the latest."""
        wanted = self.strategy.observes
        if wanted is None:
            return queries[:, :, :arrived]
        if self.moment.probe and wanted:
            return queries[:, :, arrived:]
        own = queries[:, :, :arrived]
        if wanted:
            # Everyone must see every candidate, so none may stand before the local window.
            wanted = min(wanted, self.plan.budget.window)
            latest = torch.cat((self.queries, own), dim=2) if self.queries.shape[2] else own
            self.queries = latest[:, :, max(0, latest.shape[2] - wanted) :].clone()
        return self.queries if wanted else own[:, :, :0]

    def _view(self, keys: Tensor, queries: Tensor, scale: float, count: int) -> View:
        asked = bool(self.moment.probe and self.strategy.observes)
        keys = keys if asked else keys[:, :, : self.held]
        pads = self._padding()
        anchors = self._anchors()
        forced = anchors | self._settled()
        hidden = None if pads is None else pad(pads, (0, keys.shape[2] - self.held))
        candidates = ~forced if pads is None else ~(forced | pads[:, None])
        room = max(0, count - int(forced[0, 0].sum()))
        carried = self.scores if self.strategy.accumulates else torch.zeros_like(self.positions, dtype=torch.float32)
        return View(queries, keys, self.positions, candidates, anchors, hidden, room, carried, scale, self.number)

    def _padding(self) -> Bool[Tensor, "B M"] | None:
        """Which kept tokens are padding; all heads keep the same of it."""
        return None if self.moment.first is None else self.positions[:, 0] < self.moment.first[:, None]

    def _anchors(self) -> Bool[Tensor, "B G M"]:
        """The first tokens that are not padding."""
        after = self.positions if self.moment.first is None else self.positions - self.moment.first[:, None, None]
        return (after >= 0) & (after < self.plan.budget.anchors)

    def _settled(self) -> Bool[Tensor, "B G M"]:
        """The local window, and what `accumulate` has chosen before."""
        chosen = self.positions < self.judged
        if self.moment.first is not None:
            chosen &= self.positions >= self.moment.first[:, None, None]
        return chosen | (self.positions >= self.seen - self.plan.budget.window)

    def _score(self, view: View) -> Float[Tensor, "B G M"]:
        scores = self.strategy.score(view)
        if scores.shape != view.positions.shape:
            name, found, wanted = type(self.strategy).__name__, tuple(scores.shape), tuple(view.positions.shape)
            raise ValueError(f"{name} gave scores of shape {found} where {wanted} was asked for")
        return scores

    def _drop(self, scores: Tensor, view: View, count: int) -> None:
        pads = self._padding()
        hidden = torch.zeros_like(view.candidates) if pads is None else pads[:, None].expand_as(view.candidates)
        index = keep(scores, ~(view.candidates | hidden), hidden, count)
        self.keys, self.values = take(self.keys, index), take(self.values, index)
        self.positions = self.positions.gather(2, index)
        if self.strategy.accumulates:
            self.scores = self.scores.gather(2, index)
        if self.rotary is not None:
            self.queries = self.queries[:, :, :0].clone()  # they stand where the keys no longer do
        if self.plan.mode == "accumulate":
            self.judged = max(self.judged, self.seen - self.plan.budget.window)
