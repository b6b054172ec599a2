"""Replaces the attention of a Hugging Face model and restores the model's own.

    with attend_with(model, "bit_sampling", bits=8, dense_layers=[0, 1], count=True) as swap:
        model(ids)
    print(swap.log.ratio)

    attend_with(model, "simhash")  # stays until `restore()` is called on the returned object

transformers looks up an attention function by the name in the model's configuration. A swap registers a function under
a unique name and removes it when it ends. Layers, weights, and quantised linears are not changed.
"""

from __future__ import annotations

import copy
import uuid
import weakref
from collections.abc import Callable, Collection, Mapping
from types import TracebackType
from typing import Any

from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from attentions import BACKENDS
from lsh_bitnet.comparisons import ComparisonLog
from lsh_bitnet.dispatch import Dispatch
from lsh_bitnet.features import require_plain
from lsh_bitnet.models import shape_of
from lsh_bitnet.padding import real_spans
from lsh_bitnet.positions import derive_positions, takes_positions

PREFIX = "attentions_"
# transformers interprets a name with "flash" in it as one of its own kernels.
RENAMED = {"flash": "exact"}


class _Name(str):
    """The name of a swap in a model's configuration. The name stays registered while the object is alive.

    Copying a model, by pickle or not, copies its configuration with the name and the function, so the copy keeps this
    attention whatever happens to the original.
    """

    function: Callable[..., Any]

    def __new__(cls, function: Callable[..., Any]) -> _Name:
        name = super().__new__(cls, f"{PREFIX}swap_{uuid.uuid4().hex}")
        name.function = function
        _register(str(name), function)
        weakref.finalize(name, _unregister, str(name)).atexit = False
        return name

    def __deepcopy__(self, memo: dict[int, Any]) -> _Name:
        return _Name(copy.copy(self.function))

    def __reduce__(self) -> tuple[type[_Name], tuple[Callable[..., Any]]]:
        return _Name, (self.function,)


class Swap:
    """A model whose attention is replaced; as a context manager, it restores the old one.

    During the swap, position ids of left-padded rows start at the first real token if none are passed, as in
    `generate`, because hash codes of rotated queries and keys depend on them. `log` holds the comparisons if they are
    counted, otherwise it is None.
    """

    def __init__(self, model: PreTrainedModel, function: Callable[..., Any], *, log: ComparisonLog | None) -> None:
        self.model, self.log = model, log
        self._before: dict[str, str] | None = _implementations(model)
        name = _Name(function)
        model.set_attn_implementation(name)
        if model.config._attn_implementation != name:
            model.set_attn_implementation(self._before)
            raise ValueError(
                f"{type(model).__name__} is not allowed: its layers do not look up their attention function"
            )
        decoder = model.get_decoder()
        self._hook = (
            decoder.register_forward_pre_hook(derive_positions, with_kwargs=True) if takes_positions(decoder) else None
        )
        _open.setdefault(model, []).append(weakref.ref(self))

    def restore(self) -> None:
        """Restore the previous attention; a second call has no effect.

        A later swap that is still active stays active, and will restore the attention from before this one.
        """
        if self._before is None:
            return
        swaps = [swap for held in _open[self.model] if (swap := held()) is not None]
        if later := swaps[swaps.index(self) + 1 :]:
            later[0]._before = self._before
        else:
            self.model.set_attn_implementation(self._before)
        _open[self.model] = [weakref.ref(swap) for swap in swaps if swap is not self]
        self._before = None
        if self._hook is not None:
            self._hook.remove()

    def __enter__(self) -> Swap:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.restore()


_open: weakref.WeakKeyDictionary[PreTrainedModel, list[weakref.ref[Swap]]] = weakref.WeakKeyDictionary()


def attend_with(
    model: PreTrainedModel,
    backend: str,
    *,
    dense_layers: Collection[int] = (),
    count: bool = False,
    **settings: Any,
) -> Swap:
    """Replace the attention of `model` at once; returns a `Swap` that restores the old one, automatically in `with`.

    backend: a name in `attentions.BACKENDS` or `package.module:Class`. settings: the backend's own, such as bits and
    seed. dense_layers: indices of layers that stay exact; negative ones count from the end. count: keep a
    `ComparisonLog`.

    Swaps can be nested. A copy of the model made during a swap keeps the attention it was copied with. Raises
    ValueError for an unknown backend, setting, or layer, for a model that does not use transformers' attention
    interface, and for one whose attention has features that no backend computes.
    """
    require_plain(model)
    layers = model.config.get_text_config().num_hidden_layers
    log = ComparisonLog() if count else None
    dispatch = Dispatch(backend, settings, dense=_layers(dense_layers, layers), log=log)
    dispatch.make(next(layer for layer in range(layers + 1) if layer not in dispatch.dense), **_shape(model))
    return Swap(model, dispatch, log=log)


def register(settings: Mapping[str, Mapping[str, Any]] | None = None) -> list[str]:
    """Register every backend as an `attn_implementation` named "attentions_" plus its name, and return the names.

    `settings` overrides the default settings of backends. "flash" is called "attentions_exact". Raises ValueError for
    settings of an unknown backend.
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
    AttentionMaskInterface.register(name, real_spans)


def _unregister(name: str) -> None:
    for interface in (AttentionInterface, AttentionMaskInterface):
        interface._global_mapping.pop(name, None)  # transformers has no way to unregister


def _implementations(model: PreTrainedModel) -> dict[str, str]:
    """Return the argument for `set_attn_implementation` that restores the current state; "" is the model itself."""
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
    """Return the heads in the model's configuration, to validate a backend's settings before the first call."""
    config: Any = model.config.get_text_config()
    return {**shape_of(config), "max_len": getattr(config, "max_position_embeddings", None)}
