"""A transformers cache that never holds more than its budget: `generate(ids, past_key_values=BoundedCache(model, …))`.

Between forward passes, each layer holds at most the budget; during a pass, the new tokens come on top. Pass long
prompts in chunks, `generate(…, prefill_chunk_size=…)`: the budget bounds the memory at rest, and the chunk size bounds
the peak.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, Self

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import DYNAMIC_LAYER_TYPE_MAPPING, Cache, get_layer_types_and_kwargs

from attentions.common.settings import require
from bmrt.cache.budget import Budget
from bmrt.cache.layer import BoundedLayer, Moment
from bmrt.cache.plan import CompressionPlan, Mode
from bmrt.cache.positions import Rotary
from bmrt.cache.watch import require_watched, watch
from bmrt.strategies import Strategy, build_strategy

Positions = Literal["absolute", "compact"]
SLIDING = ("sliding_attention", "chunked_attention")  # already bounded; they keep transformers' own layers


class BoundedCache(Cache):
    """Keys and values of at most `budget` tokens per layer and head, whatever the length.

    `budget` is a number of tokens or a `Budget`; `strategy` is a name in `STRATEGIES` or a `Strategy`; `mode`,
    `context_tokens`, and `slack` are as in `CompressionPlan`. With `positions` "absolute", kept tokens keep their
    positions; with "compact", they are moved directly before the next tokens, so that sequences longer than the trained
    length stay within it.

    The cache works only with the model it was made for. `probing` shows it a question that decides what is kept. Beams,
    multiple turns, left-padded batches (absolute positions only), and grouped heads are supported; `crop` is not. The
    kept positions are in `layers[i].positions`. Raises ValueError for invalid settings and for models whose layers are
    not attention, RuntimeError if another model uses it.
    """

    layers: list[Any]

    def __init__(
        self,
        model: PreTrainedModel,
        budget: int | Budget,
        *,
        strategy: str | Strategy = "exact",
        protection_divisor: int = 4,
        mode: Mode = "recursive",
        positions: Positions = "absolute",
        context_tokens: int | None = None,
        slack: int | None = None,
    ) -> None:
        require(positions in ("absolute", "compact"), "positions", positions, "absolute or compact")
        self.strategy = build_strategy(strategy) if isinstance(strategy, str) else strategy
        budget = budget if isinstance(budget, Budget) else Budget(budget, protection_divisor)
        self.plan = CompressionPlan(budget, mode, context_tokens, slack)
        require_compatible(mode, self.strategy)
        self.positions: str = positions
        self._decoder: Any = model.base_model
        self._rotary = Rotary(self._decoder) if positions == "compact" else None
        self._probe = 0
        self._most_positions = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
        super().__init__(layers=self._make_layers(model))
        self._unwatch: Callable[[], None] = watch(self._decoder, self)

    @property
    def bounded(self) -> list[BoundedLayer]:
        """The bounded layers: all except those with a sliding window."""
        return [layer for layer in self.layers if isinstance(layer, BoundedLayer)]

    @property
    def state_bytes(self) -> int:
        """Current size of the bounded layers in bytes: keys, values, positions, and what the strategy stores."""
        return sum(layer.state_bytes for layer in self.bounded)

    @contextmanager
    def probing(self, tokens: int) -> Iterator[None]:
        """Within this block, the last `tokens` of each forward pass are a probe: a question about the rest.

        Probe tokens attend as usual and their output can be read, but the cache does not keep them; strategies that
        observe queries use those of the probe. Raises ValueError if a sliding window would keep them.
        """
        require(tokens >= 0, "tokens", tokens, "an integer of at least 0")
        if tokens and any(self.is_sliding):
            raise ValueError("a question cannot be shown to layers with a sliding window, which would remember it")
        self._probe = tokens
        try:
            yield
        finally:
            self._probe = 0

    def close(self) -> None:
        """Remove the hooks from the model; the cache cannot be used afterwards. Garbage collection does the same."""
        self._unwatch()

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        require_watched(self)
        return super().update(key_states, value_states, layer_idx, *args, **kwargs)

    def enter(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Prepare for a forward pass; called by the hooks."""
        given = arguments.get("input_ids")
        given = arguments["inputs_embeds"] if given is None else given
        tokens = given.shape[1]
        self._require_whole()
        if self._probe and self._probe >= tokens:
            raise ValueError(
                f"a question of {self._probe} tokens in {tokens}: it must be preceded by tokens that are kept"
            )
        self._require_rows(given.shape[0])
        first = _first(arguments.get("attention_mask"), given.shape[0], self.bounded[0].seen + tokens)
        if first is not None and self._rotary is not None:
            raise ValueError(
                "positions='compact' does not support a padded batch: use 'absolute', or rows of equal length"
            )
        for layer in self.bounded:
            layer.begin(Moment(self._probe, first))
        if self._rotary is not None:
            arguments = self._compacted(arguments, given)
        self._warn_of_positions(tokens)
        return arguments

    def leave(self, *, failed: bool) -> None:
        """Finish a forward pass; called by the hooks."""
        if not failed and any(layer.shown is not None for layer in self.bounded):
            raise RuntimeError(
                f"the attention of {type(self._decoder).__name__} does not use transformers' attention "
                "functions, so its queries cannot be seen"
            )

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Copy the cache for the same model, for prompts that share a prefix; if the model was copied in the same
        deepcopy before it, the copy belongs to the model's copy."""
        other = type(self).__new__(type(self))
        memo[id(self)] = other
        copied = id(self._decoder) in memo
        shared = (self.strategy,) if copied else (self.strategy, self._decoder, self._rotary)
        # Use a separate memo: other objects in this deepcopy must not end up with the original model.
        other.__setstate__(copy.deepcopy(self.__getstate__(), memo | {id(x): x for x in shared}))
        return other

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_unwatch"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._unwatch = watch(self._decoder, self)

    def _make_layers(self, model: PreTrainedModel) -> list[Any]:
        kinds, settings = get_layer_types_and_kwargs(model.config.get_text_config(decoder=True))
        known = {"full_attention", *SLIDING}
        for kind in kinds:
            require(kind in known, "layer type", kind, f"one of {', '.join(sorted(known))} to have a bounded cache")
        require("full_attention" in kinds, "model", type(model).__name__, "one with layers of full attention")
        if self._rotary is not None and set(kinds) & set(SLIDING):
            raise ValueError(
                "positions='compact' cannot be combined with sliding windows, whose keys keep their positions"
            )
        return [
            BoundedLayer(number, self.plan, self.strategy, self._rotary)
            if kind == "full_attention"
            else DYNAMIC_LAYER_TYPE_MAPPING[kind](**own)
            for number, (kind, own) in enumerate(zip(kinds, settings, strict=True))
        ]

    def _require_whole(self) -> None:
        """Check that all layers have seen the same tokens; they have not if a forward pass was interrupted."""
        layers = self.bounded
        if len({layer.seen for layer in layers}) > 1 or any(layer.shown is not None for layer in layers):
            raise RuntimeError("an earlier forward pass with this cache was interrupted: call reset()")

    def _require_rows(self, batch: int) -> None:
        """Check that the number of sequences has not changed."""
        layer = self.bounded[0]
        if layer.is_initialized and len(layer.keys) != batch:
            raise ValueError(
                f"a cache of {len(layer.keys)} sequences cannot be used for {batch}: create a new cache or call reset()"
            )

    def _compacted(self, arguments: dict[str, Any], given: Tensor) -> dict[str, Any]:
        """Place the new tokens directly after the kept ones."""
        held = self.bounded[0].held
        return arguments | {"position_ids": torch.arange(held, held + given.shape[1], device=given.device)[None]}

    def _warn_of_positions(self, tokens: int) -> None:
        layer = self.bounded[0]
        reached = tokens + (layer.held if self._rotary is not None else layer.seen)
        if self._most_positions is not None and reached > self._most_positions:
            remedy = "smaller chunks" if self._rotary is not None else "positions='compact'"
            warnings.warn(
                f"position {reached - 1} is beyond the {self._most_positions} that the model was trained for; "
                f"{remedy} would stay within this limit",
                stacklevel=2,
            )
            self._most_positions = None  # warn only once


def require_compatible(mode: str, strategy: Strategy) -> None:
    """Raise ValueError for a strategy that rescores every token in a mode that judges each token once."""
    if mode == "accumulate" and strategy.accumulates:
        name = type(strategy).__name__
        raise ValueError(f"{name} is not allowed with compression_mode='accumulate': it rescores every token")


def _first(mask: Any, batch: int, tokens: int) -> tuple[int, ...] | None:
    """Return where each row's left padding ends, from a mask (B, tokens so far); None if there is no padding."""
    if mask is None:
        return None
    if not isinstance(mask, Tensor) or mask.ndim != 2:
        kind = f"of {mask.ndim} dimensions" if isinstance(mask, Tensor) else f"that is a {type(mask).__name__}"
        raise ValueError(f"an attention mask {kind} is not allowed: it must be (batch, tokens so far)")
    if mask.shape != (batch, tokens):
        raise ValueError(
            f"an attention mask of shape {tuple(mask.shape)} is not allowed: it must be (batch, tokens so far), "
            f"{(batch, tokens)}"
        )
    real = mask.bool()
    if bool(real.all()):
        return None
    if bool((real[:, 1:] < real[:, :-1]).any()):
        raise ValueError("padding is only allowed on the left of a row")
    return tuple((~real).sum(1).tolist())
