"""One layer of the bounded cache: at most its budget at rest, plus the current chunk while attention runs.

`update` shows attention all kept tokens and the new ones. `settle` follows attention and receives its queries: it
scores the tokens, drops those that do not fit, and keeps the rest.

In a left-padded batch, each row keeps what it would keep on its own. If a row keeps fewer tokens than another, its
first slots are empty: zeros at position -1 that no query sees. Padding is treated the same way, whatever it contains.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import pad
from transformers.cache_utils import CacheLayerMixin

from bmrt.cache.selection import keep, take
from bmrt.strategies.base import Strategy, View, wide

if TYPE_CHECKING:
    from bmrt.cache.plan import CompressionPlan
    from bmrt.cache.positions import Rotary


@dataclass(frozen=True)
class Moment:
    """Properties of the current forward pass.

    `probe`: the number of last tokens that are only shown, not kept; `first`: where each row's padding ends, None
    without padding.
    """

    probe: int = 0
    first: tuple[int, ...] | None = None


@dataclass(frozen=True)
class CachedSequence:
    """One sequence: where its padding ends, how many tokens it keeps, and how many `accumulate` has already judged."""

    first: int = 0
    held: int = 0
    judged: int = 0


class BoundedLayer(CacheLayerMixin):
    """The tokens that one layer keeps, separately for each sequence and key head.

    `keys` and `values` are (B, G, M, D); `positions` (B, G, M) are ascending, with -1 in empty slots; `seen` is the
    number of tokens processed, including padding. With `rotary`, keys are stored unrotated and occupy positions 0 to
    M - 1.
    """

    is_sliding = False
    keys: Any  # a Tensor after initialization; transformers uses None before
    values: Any
    positions: Tensor
    scores: Tensor  # carried between chunks if the strategy accumulates, empty otherwise
    queries: Tensor  # the latest queries, as many as the strategy observes

    def __init__(self, number: int, plan: CompressionPlan, strategy: Strategy, rotary: Rotary | None = None) -> None:
        super().__init__()
        self.number, self.plan, self.strategy, self.rotary = number, plan, strategy, rotary
        self.reset()

    def reset(self) -> None:
        self.is_initialized = False
        self.seen = 0
        self.rows = [CachedSequence()]  # a single entry if no row is padded
        self.shown: tuple[Tensor, Tensor] | None = None  # the keys and values shown to attention, None at rest
        self.moment = Moment()

    def begin(self, moment: Moment) -> None:
        """Prepare for a forward pass. Raises ValueError if the padding has moved."""
        first = moment.first or (0,) * len(self.rows)
        rows = self.rows * len(first) if len(self.rows) == 1 else self.rows
        for number, (row, start) in enumerate(zip(rows, first, strict=True)):
            before = max(0, self.seen - row.first)  # tokens without padding
            if start != row.first if before else start < self.seen:
                raise ValueError(
                    f"row {number} is padded up to {start} in this attention mask, and was up to {row.first} before: "
                    "a mask must keep covering the padding"
                )
        self.rows = [replace(row, first=start) for row, start in zip(rows, first, strict=True)]
        self.moment = moment

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        # Clone, because an empty slice would keep the whole chunk's memory alive.
        self.keys, self.values = key_states[:, :, :0].clone(), value_states[:, :, :0].clone()
        self.queries = self.keys.clone()
        self.positions = torch.zeros(*key_states.shape[:2], 0, dtype=torch.int64, device=self.device)
        self.scores = wide(self.keys[..., 0])
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        if (pads := self._padding_of(key_states.shape[2])) is not None:
            key_states, value_states = (x.masked_fill(pads, 0) for x in (key_states, value_states))
        kept = self.keys if self.rotary is None else self.rotary.rotate(self.keys, self._places(0, self.held))
        self.shown = _joined(kept, key_states), _joined(self.values, value_states)
        return self.shown

    @torch.no_grad()
    def settle(self, queries: Float[Tensor, "B H T D"], scale: float) -> None:
        """Keep the tokens that fit, out of all that attention has just seen."""
        with torch.autocast(queries.device.type, enabled=False):  # never round scores to a narrower type
            self._settle(queries, scale)

    def _settle(self, queries: Tensor, scale: float) -> None:
        assert self.shown is not None, "attention has just read the layer"
        (keys, values), self.shown = self.shown, None
        if (pads := self._padding_of(queries.shape[2])) is not None:
            queries = queries.masked_fill(pads, 0)
        arrived = queries.shape[2] - self.moment.probe
        self._append(keys, values, arrived)
        observed = self._observe(queries, arrived)
        counts = [self._count(row, arrived) for row in self.rows]
        full = any(count < row.held for count, row in zip(counts, self.rows, strict=True))
        if full or self.strategy.accumulates:
            view = self._view(keys, observed, scale, counts)
            scores = self._score(view)
            if self.strategy.accumulates:
                self.scores = scores
            if full:
                self._drop(scores, view.candidates, counts)
        if max(counts) < self.held:  # all rows have empty slots in common
            self._drop(self.positions.double(), torch.zeros_like(self.positions, dtype=torch.bool), counts)

    def _count(self, row: CachedSequence, arrived: int) -> int:
        """Return how many tokens a row keeps, as it would on its own."""
        seen = max(0, self.seen - row.first)
        limit, count = self.plan.limits(seen, min(arrived, seen))
        return count if row.held > limit else row.held

    @property
    def held(self) -> int:
        """M, the number of tokens kept now."""
        return self.positions.shape[2] if self.is_initialized else 0

    @property
    def state_bytes(self) -> int:
        """Size of everything kept between forward passes, in bytes."""
        return sum(x.untyped_storage().nbytes() for x in self._tensors().values())

    def visible(self) -> Bool[Tensor, "B G T N"]:
        """Mask of the shown keys that each new query may see, for left-padded rows.

        A padding query sees itself, because attention over no keys is NaN; its output is never used.
        """
        assert self.shown is not None
        N, T = self.shown[0].shape[2], self.shown[0].shape[2] - self.held
        there = torch.cat((self.positions, self._arriving(T)), dim=2) >= 0
        own = torch.eye(T, N, dtype=torch.bool, device=self.device).roll(N - T, dims=1)
        causal = torch.ones(T, N, dtype=torch.bool, device=self.device).tril(N - T)
        return causal & there[:, :, None] | own

    def get_seq_length(self) -> int:
        return self.seen

    def get_max_length(self) -> int:
        return -1

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """For the mask, the kept tokens come directly before the new ones: all visible, with the new ones causal."""
        return self.held + query_length, self.seen - self.held

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self.batch_select_indices(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the sequences in `indices`, in that order."""
        self._each(lambda x: x[indices.to(x.device)])
        if len(self.rows) > 1:
            self.rows = [self.rows[i] for i in torch.arange(len(self.rows))[indices.cpu()].tolist()]

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every sequence `repeats` times."""
        self._each(lambda x: x.repeat_interleave(repeats, dim=0))
        if len(self.rows) > 1:
            self.rows = [row for row in self.rows for _ in range(repeats)]

    def crop(self, tokens_to_remove: int) -> None:
        raise ValueError(f"crop({tokens_to_remove}) is not possible: dropped tokens cannot be restored")

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
        """Return the compact positions of kept and new tokens."""
        return torch.arange(start, stop, device=self.device)[None]

    def _append(self, keys: Tensor, values: Tensor, arrived: int) -> None:
        """Append the new tokens, except for a probe."""
        stop = self.held + arrived
        if self.rotary is not None:
            fresh = self.rotary.unrotate(keys[:, :, self.held :], self._places(self.held, keys.shape[2]))
            keys = _joined(self.keys, fresh)
        self.keys, self.values = (x if stop == x.shape[2] else x[:, :, :stop].clone() for x in (keys, values))
        self.positions = torch.cat((self.positions, self._arriving(arrived)), dim=2)
        if self.strategy.accumulates:
            self.scores = pad(self.scores, (0, arrived))
        self.seen += arrived
        self.rows = [replace(row, held=row.held + min(arrived, max(0, self.seen - row.first))) for row in self.rows]

    def _observe(self, queries: Tensor, arrived: int) -> Tensor:
        """Return the queries that the strategy uses: the probe's, the chunk's, or the latest."""
        wanted = self.strategy.observes
        if wanted is None:
            return queries[:, :, :arrived]
        if self.moment.probe and wanted:
            return queries[:, :, arrived:]
        own = queries[:, :, :arrived]
        if wanted:
            # Every observing query must see every candidate, so none may precede the local window.
            wanted = min(wanted, self.plan.budget.window)
            latest = torch.cat((self.queries, own), dim=2) if self.queries.shape[2] else own
            self.queries = latest[:, :, max(0, latest.shape[2] - wanted) :].clone()
        return self.queries if wanted else own[:, :, :0]

    def _view(self, keys: Tensor, queries: Tensor, scale: float, counts: list[int]) -> View:
        asked = bool(self.moment.probe and self.strategy.observes)
        keys = keys if asked else keys[:, :, : self.held]
        own = self.positions - self._by_row([row.first for row in self.rows])  # below 0: empty
        budget = self.plan.budget
        anchors = (own >= 0) & (own < budget.anchors)
        settled = own < self._by_row([row.judged for row in self.rows])
        window = own >= self._by_row([max(0, self.seen - row.first - budget.window) for row in self.rows])
        forced = anchors | (own >= 0) & settled | window
        hidden = pad(own[:, 0] < 0, (0, keys.shape[2] - self.held)) if self._padded else None
        candidates = ~forced & (own >= 0) if self._padded else ~forced
        room = (self._by_row(counts) - forced.sum(-1, keepdim=True)).squeeze(-1).clamp(min=0)
        carried = self.scores if self.strategy.accumulates else torch.zeros_like(own, dtype=torch.float32)
        return View(queries, keys, own, candidates, anchors, hidden, room, carried, scale, self.number)

    @property
    def _padded(self) -> bool:
        return any(row.first for row in self.rows)

    def _by_row(self, values: list[int]) -> int | Int[Tensor, "B 1 1"]:
        """Return per-row numbers in a shape that broadcasts over tokens."""
        return values[0] if len(values) == 1 else torch.tensor(values, device=self.device)[:, None, None]

    def _arriving(self, tokens: int) -> Int[Tensor, "B G T"]:
        """Return the positions of the next tokens; -1 for padding."""
        new = torch.arange(self.seen, self.seen + tokens, device=self.device)[None, None]
        if self._padded:
            new = new.masked_fill(new < self._by_row([row.first for row in self.rows]), -1)
        return new.expand(*self.positions.shape[:2], -1)

    def _padding_of(self, tokens: int) -> Bool[Tensor, "B 1 T 1"] | None:
        """Mask of the next tokens that are padding; None if there is none."""
        if all(row.first <= self.seen for row in self.rows):
            return None
        return (self._arriving(tokens) < 0)[:, :1, :, None]

    def _score(self, view: View) -> Float[Tensor, "B G M"]:
        scores = self.strategy.score(view)
        if scores.shape != view.positions.shape:
            name, found, wanted = type(self.strategy).__name__, tuple(scores.shape), tuple(view.positions.shape)
            raise ValueError(f"{name} gave scores of shape {found} instead of {wanted}")
        return scores

    def _drop(self, scores: Tensor, candidates: Tensor, counts: list[int]) -> None:
        """Keep the given number of tokens per row: first those that are not candidates, then the best candidates."""
        empty = self.positions < 0 if self._padded else torch.zeros_like(candidates)
        most = max(counts)
        own = self._by_row(counts) if min(counts) < most else None
        index = keep(scores, ~(candidates | empty), empty, most, own)
        gone = index < 0 if self._padded else None  # a row that keeps fewer than the others gets empty slots
        index = index.clamp(min=0)

        def kept(x: Tensor, nothing: int = 0) -> Tensor:
            found = take(x, index) if x.ndim == 4 else x.gather(2, index)
            return found if gone is None else found.masked_fill(gone if x.ndim == 3 else gone[..., None], nothing)

        self.keys, self.values, self.positions = kept(self.keys), kept(self.values), kept(self.positions, -1)
        if self.strategy.accumulates:
            self.scores = kept(self.scores)
        if self.rotary is not None:
            self.queries = self.queries[:, :, :0].clone()  # their positions no longer match the keys'
        self.rows = [self._after(row, count) for row, count in zip(self.rows, counts, strict=True)]

    def _after(self, row: CachedSequence, count: int) -> CachedSequence:
        if self.plan.mode != "accumulate" or count == row.held:
            return replace(row, held=count)
        return replace(row, held=count, judged=max(row.judged, self.seen - row.first - self.plan.budget.window))


def _joined(kept: Tensor, new: Tensor) -> Tensor:
    """Concatenate kept and new tokens in the model's current dtype; under autocast, torch chooses it."""
    if not torch.is_autocast_enabled(new.device.type):
        kept = kept.to(new.dtype)
    return torch.cat((kept, new), dim=2)
