"""Any registered attention inside a Hugging Face model, and the model's own back again.

    with attend_with(model, "bit_sampling", bits=8, dense_layers=[0, 1], count=True) as swap:
        model(ids)
    print(swap.log.ratio)

    attend_with(model, "simhash")  # stays, until `restore()` of what it returned

transformers looks an attention function up by the name in the model's configuration; a swap registers one under a
name of its own and, when it ends, takes it out again. Layers, weights and quantised linears are not touched.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Mapping
from types import TracebackType
from typing import Any

from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from attentions import BACKENDS
from lsh_bitnet.comparisons import ComparisonLog
from lsh_bitnet.dispatch import Dispatch
from lsh_bitnet.padding import first_positions

PREFIX = "attentions_"
# transformers takes a name with "flash" in it for one of its own kernels.
RENAMED = {"flash": "exact"}
_numbers = itertools.count()


class Swap:
    """A model whose attention is replaced; a context manager that puts the old one back.

    `log` has the comparisons where they are counted, else it is None.
    """

    def __init__(self, model: PreTrainedModel, function: Callable[..., Any], *, log: ComparisonLog | None) -> None:
        self.model, self.log = model, log
        self._name = f"{PREFIX}swap_{next(_numbers)}"
        self._before: dict[str, str] | None = _implementations(model)
        _register(self._name, function)
        model.set_attn_implementation(self._name)
        if model.config._attn_implementation != self._name:
            self.restore()
            raise ValueError(f"{type(model).__name__} is not allowed: its layers do not look their attention up")

    def restore(self) -> None:
        """The attention that was there before; a second call changes nothing."""
        if self._before is None:
            return
        self.model.set_attn_implementation(self._before)
        self._before = None
        for interface in (AttentionInterface, AttentionMaskInterface):
            interface._global_mapping.pop(self._name)  # register has no opposite

    def __enter__(self) -> Swap:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.restore()


def attend_with(
    model: PreTrainedModel,
    backend: str,
    *,
    dense_layers: Collection[int] = (),
    count: bool = False,
    **settings: Any,
) -> Swap:
    """Replace the attention of `model` at once; what is returned puts the old one back, by itself in a `with`.

    backend: a name in `attentions.BACKENDS` or `package.module:Class`. settings: its own, such as bits and seed.
    dense_layers: indices of layers that stay exact, negative ones from the end. count: keep a `ComparisonLog`.

    Swaps may be nested, and end in the reverse order. Raises ValueError for an unknown backend, setting or layer,
    and for a model that does not dispatch through transformers' attention interface.
    """
    layers = model.config.get_text_config().num_hidden_layers
    log = ComparisonLog() if count else None
    dispatch = Dispatch(backend, settings, dense=_layers(dense_layers, layers), log=log)
    dispatch.make(next(layer for layer in range(layers + 1) if layer not in dispatch.dense), **_shape(model))
    return Swap(model, dispatch, log=log)


def register(settings: Mapping[str, Mapping[str, Any]] | None = None) -> list[str]:
    """Make every backend an `attn_implementation`, "attentions_" and its name, and return those names.

    `settings` gives backends other settings than their own defaults. "flash" is called "attentions_exact".
    Raises ValueError for settings of a backend that there is not.
    """
    settings = settings or {}
    if unknown := settings.keys() - BACKENDS.keys():
        raise ValueError(f"settings of {sorted(unknown)} are not allowed: the backends are {', '.join(BACKENDS)}")
    names = [PREFIX + RENAMED.get(name, name) for name in BACKENDS]
    for name, backend in zip(names, BACKENDS, strict=True):
        _register(name, Dispatch(backend, settings.get(backend, {})))
    return names


def _register(name: str, function: Callable[..., Any]) -> None:
    AttentionInterface.register(name, function)
    AttentionMaskInterface.register(name, first_positions)


def _implementations(model: PreTrainedModel) -> dict[str, str]:
    """What `set_attn_implementation` takes to make everything as it is now; "" is the model itself."""
    found = {"": model.config._attn_implementation or "eager"}
    for name in model.config.sub_configs:
        part: Any = getattr(model.config, str(name))
        if part is not None:
            found[str(name)] = part._attn_implementation or "eager"
    return found


def _layers(wanted: Collection[int], count: int) -> set[int]:
    for layer in wanted:
        if not -count <= layer < count:
            raise ValueError(f"dense_layers={list(wanted)} is not allowed: the model's layers are 0 to {count - 1}")
    return {layer % count for layer in wanted}


def _shape(model: PreTrainedModel) -> dict[str, Any]:
    """Heads as the model's configuration gives them, to try a backend's settings before the first call."""
    config: Any = model.config.get_text_config()
    heads = config.num_attention_heads
    return {
        "heads": heads,
        "head_dim": getattr(config, "head_dim", None) or config.hidden_size // heads,
        "kv_heads": getattr(config, "num_key_value_heads", None) or heads,
        "max_len": getattr(config, "max_position_embeddings", None),
    }
