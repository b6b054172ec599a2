"""Any registered attention inside a Hugging Face model, and the model's own back again.

    with attend_with(model, "bit_sampling", bits=8, dense_layers=[0, 1], count=True) as swap:
        model(ids)
    print(swap.log.ratio)

    attend_with(model, "simhash")  # stays, until `restore()` of what it returned

transformers looks an attention function up by the name in the model's configuration; a swap registers one under a
name of its own and, when it ends, takes it out again. Layers, weights and quantised linears are not touched.
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
# transformers takes a name with "flash" in it for one of its own kernels.
RENAMED = {"flash": "exact"}


class _Name(str):
    """The name of a swap, in a model's configuration. It is registered for as long as it is held.

    A copy of a model, pickled or not, copies its configuration, and with it the name and the function: the copy goes
    on attending as the model did, whatever becomes of that.
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
    """A model whose attention is replaced; a context manager that puts the old one back.

    Meanwhile the position ids of left-padded rows begin at their first real token where none are given, as `generate`
    gives them: hash codes of rotated queries and keys depend on them. `log` has the comparisons where they are
    counted, else it is None.
    """

    def __init__(self, model: PreTrainedModel, function: Callable[..., Any], *, log: ComparisonLog | None) -> None:
        self.model, self.log = model, log
        self._before: dict[str, str] | None = _implementations(model)
        name = _Name(function)
        model.set_attn_implementation(name)
        if model.config._attn_implementation != name:
            model.set_attn_implementation(self._before)
            raise ValueError(f"{type(model).__name__} is not allowed: its layers do not look their attention up")
        decoder = model.get_decoder()
        self._hook = (
            decoder.register_forward_pre_hook(derive_positions, with_kwargs=True) if takes_positions(decoder) else None
        )
        _open.setdefault(model, []).append(weakref.ref(self))

    def restore(self) -> None:
        """The attention that was there before; a second call changes nothing.

        A swap that was made later, and is still in force, stays so: it then puts that attention back.
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
    """Replace the attention of `model` at once; what is returned puts the old one back, by itself in a `with`.

    backend: a name in `attentions.BACKENDS` or `package.module:Class`. settings: its own, such as bits and seed.
    dense_layers: indices of layers that stay exact, negative ones from the end. count: keep a `ComparisonLog`.

    Swaps may be nested. A copy of the model that is made meanwhile keeps the attention that it was copied with.
    Raises ValueError for an unknown backend, setting or layer, for a model that does not dispatch through
    transformers' attention interface, and for one whose attention has features that no backend computes.
    """
    require_plain(model)
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
    AttentionMaskInterface.register(name, real_spans)


def _unregister(name: str) -> None:
    for interface in (AttentionInterface, AttentionMaskInterface):
        interface._global_mapping.pop(name, None)  # register has no opposite


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
    return {**shape_of(config), "max_len": getattr(config, "max_position_embeddings", None)}
