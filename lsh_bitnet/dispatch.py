"""Adapts an `attentions` backend to the attention function that transformers' layers call.

A layer calls its attention function with q, k, and v after rotary positions and cache: query (B, H, N, D), key and
value (B, G, M, D) with G key/value heads, not repeated, of which the first M - N come from the cache.
`attentions.Attention` has the same interface, so this module only builds one attention per layer and passes the padding
on.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from jaxtyping import Float, Int
from torch import Tensor, nn

from attentions import Attention, build
from attentions.common.inputs import one_dtype
from attentions.common.problem import problem_of
from lsh_bitnet.features import require_known
from lsh_bitnet.padding import attend, require_slack, require_spans

if TYPE_CHECKING:
    from lsh_bitnet.comparisons import ComparisonLog

MODEL_DECIDES = ("heads", "head_dim", "kv_heads", "value_dim", "causal", "scale", "max_len")
SEEDS_APART = 10_000  # more than any model's layers, so seeds of different runs never collide
MOST_SEEDS = 2**63 // SEEDS_APART


class Dispatch:
    """Runs backend `name` with `settings` in every layer except the `dense` ones, which stay exact.

    Each layer gets a different seed for its hash functions, derived from the setting `seed`. With a `log`, each call
    counts its comparisons there, which costs about as much as the selection itself. A copy, pickled or not, attends the
    same way but does not count.

    Raises ValueError for settings that the model determines.
    """

    def __init__(
        self,
        name: str,
        settings: Mapping[str, Any],
        *,
        dense: Collection[int] = (),
        log: ComparisonLog | None = None,
    ) -> None:
        decided = [setting for setting in MODEL_DECIDES if setting in settings]
        if decided:
            raise ValueError(
                f"settings {decided} are not allowed: these are set by the model: {', '.join(MODEL_DECIDES)}"
            )
        self.name, self.settings, self.dense, self.log = name, dict(settings), frozenset(dense), log
        self._built: WeakKeyDictionary[nn.Module, Attention] = WeakKeyDictionary()
        self._warned = False

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "log": None, "_built": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _built=WeakKeyDictionary())

    def __call__(
        self,
        module: nn.Module,
        query: Float[Tensor, "B H N D"],
        key: Float[Tensor, "B G M D"],
        value: Float[Tensor, "B G M E"],
        attention_mask: Any,
        *,
        scaling: float | None = None,
        dropout: float = 0.0,
        **extras: Any,
    ) -> tuple[Float[Tensor, "B N H E"], None]:
        """Called by transformers. Raises ValueError, with the reason, for a problem that the attention cannot run."""
        if dropout:
            raise ValueError(f"attention_dropout={dropout} is not allowed: these attentions do not support dropout")
        if not getattr(module, "is_causal", True):
            raise ValueError(f"{type(module).__name__} is not allowed: it is not causal")
        require_slack(key.shape[2], extras.get("sliding_window"))
        require_known(extras)
        spans = require_spans(attention_mask)
        query, key, value = one_dtype(query, key, value)
        attention = self._attention(module, query, key, value, scaling)
        if reason := attention.why_not(problem_of(attention, query, key, backward=query.requires_grad)):
            raise ValueError(f"{self.name} cannot be used here: {reason}")
        if spans is not None and not attention.exact:
            self._warn_of_positions(spans, extras.get("position_ids"), key.shape[2])
        if self.log is not None:
            self.log.count(layer_of(module), attention, query, key, spans)
        out = attend(attention, query, key, value, spans)
        return out.transpose(1, 2).contiguous(), None

    def _warn_of_positions(self, spans: Int[Tensor, "B 2"], positions: object, keys: int) -> None:
        """Warn once if rotary positions count padding, because hash codes then depend on the amount of padding."""
        if self._warned or not (isinstance(positions, Tensor) and positions.ndim == 2 and positions.shape[1] == keys):
            return
        first, end = spans.unbind(1)
        rows = (first < end).nonzero()[:, 0]
        begun = positions.cpu().expand(len(spans), -1)[rows, first[rows]]
        if bool((begun != 0).any()):
            self._warned = True
            warnings.warn(
                f"position_ids count the padding on the left, which changes what {self.name} selects: give "
                "attention_mask.cumsum(1) - 1, as generate() does",
                stacklevel=2,
            )

    def _attention(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, scaling: float | None
    ) -> Attention:
        """Return the module's own attention, built at its first call and moved with the model."""
        found = self._built.get(module)
        if found is None:
            config: Any = getattr(module, "config", None)
            found = self._built[module] = self.make(
                layer_of(module),
                heads=query.shape[1],
                head_dim=query.shape[3],
                kv_heads=key.shape[1],
                value_dim=value.shape[3],
                scale=scaling,
                max_len=getattr(config, "max_position_embeddings", None),
            ).eval()
        return found.to(query.device)

    def make(self, layer: int, **shape: Any) -> Attention:
        """Build the attention of a layer: this backend, or an exact one in a dense layer.

        Raises ValueError for an unknown backend and for invalid settings.
        """
        if layer in self.dense:
            return build("flash", **shape)
        seed = self.settings.get("seed", 0)
        if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < MOST_SEEDS:
            raise ValueError(f"seed={seed!r} is not allowed: it must be an integer from 0 to {MOST_SEEDS - 1}")
        try:
            return build(self.name, **shape, **{**self.settings, "seed": seed * SEEDS_APART + layer})
        except ValueError:
            raise
        except Exception as error:  # settings of any type reach the constructor, which may be user code
            message = " ".join(str(error).split()) or type(error).__name__
            raise ValueError(f"{self.name} cannot be built with {self.settings}: {message}") from error


def layer_of(module: nn.Module) -> int:
    """Return the index of the layer that an attention module belongs to."""
    return int(getattr(module, "layer_idx", None) or 0)
