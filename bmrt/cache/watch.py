"""Gives a cache access to the queries of a model's attention, which transformers does not pass to caches.

While a forward pass uses a watched cache, transformers' attention function is wrapped: it runs as usual and then passes
its queries to the cache's layer. Between forward passes nothing is wrapped, and other models are not affected. Copies
and saved versions of a watched model are not watched.
"""

from __future__ import annotations

import inspect
import sys
import threading
import weakref
from collections import Counter, OrderedDict
from collections.abc import Callable
from contextvars import ContextVar, Token
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from bmrt.cache.layer import BoundedLayer


class Watched(Protocol):
    """A cache that is notified of forward passes."""

    layers: Any

    def enter(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Called before the decoder runs, with its arguments by name; returns the arguments to use instead."""
        ...

    def leave(self, *, failed: bool) -> None:
        """Called after the decoder ran."""
        ...


_cache: ContextVar[Watched | None] = ContextVar("bmrt_cache", default=None)
_lock = threading.Lock()
_users: Counter[str] = Counter()  # number of running forward passes per wrapped name
_wrapped: dict[str, Callable[..., Any] | None] = {}  # the functions that the wrappers replace


class _Hook:
    """Marks a cache's hooks, so that copies of a model can omit them."""

    def __init__(self, call: Callable[..., Any]) -> None:
        self._call = call

    def __call__(self, *args: Any) -> Any:
        return self._call(*args)


def watch(decoder: nn.Module, cache: Watched) -> Callable[[], None]:
    """Hook into the decoder until the cache is garbage-collected or the returned function is called."""
    reference, tokens = weakref.ref(cache), list[Token[Watched | None]]()

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any] | None:
        arguments = _by_name(module, args) | kwargs
        cache = reference()
        if cache is None or arguments.get("past_key_values") is not cache:
            return None
        changed = cache.enter(arguments)
        _install(_implementation(module))
        tokens.append(_cache.set(cache))
        return (), changed

    def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        cache = reference()
        if cache is None or _cache.get() is not cache:
            return
        _cache.reset(tokens.pop())
        _remove(_implementation(module))
        cache.leave(failed=output is None)

    handles = [
        decoder.register_forward_pre_hook(_Hook(before), with_kwargs=True),
        decoder.register_forward_hook(_Hook(after), always_call=True),
    ]
    own = weakref.ref(decoder)
    # Used by copy and pickle; set on the object, because its class belongs to the library.
    vars(decoder)["__getstate__"] = lambda: _unwatched(own())

    def leave_alone() -> None:
        for handle in handles:
            handle.remove()
        if not any(isinstance(hook, _Hook) for hook in decoder._forward_pre_hooks.values()):
            vars(decoder).pop("__getstate__", None)

    return weakref.finalize(cache, leave_alone)


def _unwatched(decoder: Any) -> dict[str, Any]:
    """Return a module's state without the hooks of caches."""
    usual: Any = type(decoder).__getstate__
    state = dict(usual(decoder))
    del state["__getstate__"]
    tables = {name: table for name, table in state.items() if name.startswith("_forward_")}
    ours = {number for table in tables.values() for number, hook in table.items() if isinstance(hook, _Hook)}
    for name, table in tables.items():
        state[name] = OrderedDict((number, hook) for number, hook in table.items() if number not in ours)
    return state


def require_watched(cache: Watched) -> None:
    """Raise RuntimeError unless a forward pass of this cache's own model is running."""
    if _cache.get() is not cache:
        raise RuntimeError(
            "a BoundedCache works only with the model that it was created for, called through its forward or "
            "generate; create another one for another model"
        )


def _by_name(module: nn.Module, args: tuple[Any, ...]) -> dict[str, Any]:
    return dict(zip(inspect.signature(module.forward).parameters, args, strict=False))


def _implementation(module: Any) -> str:
    return module.config._attn_implementation or "eager"


def _install(name: str) -> None:
    with _lock:
        if not _users[name]:
            _wrapped[name] = ALL_ATTENTION_FUNCTIONS._local_mapping.get(name)
            ALL_ATTENTION_FUNCTIONS[name] = _attention(name, ALL_ATTENTION_FUNCTIONS.get(name))
        _users[name] += 1


def _remove(name: str) -> None:
    with _lock:
        _users[name] -= 1
        if _users[name]:
            return
        before = _wrapped.pop(name)
        if before is None:
            del ALL_ATTENTION_FUNCTIONS[name]
        else:
            ALL_ATTENTION_FUNCTIONS[name] = before


def _attention(name: str, usual: Callable[..., Any] | None) -> Callable[..., Any]:
    """Wrap the attention function of that name so that it passes its queries to the layer whose keys it gets."""

    def attend(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        run = usual or sys.modules[type(module).__module__].eager_attention_forward
        layer = _layer_of(module, key)
        if layer is None:
            return run(module, query, key, value, attention_mask, **kwargs)
        if layer.moment.first is not None:
            attention_mask = _mask(layer.visible(), name, query)
        found = run(module, query, key, value, attention_mask, **kwargs)
        scale = kwargs.get("scaling")
        layer.settle(query.detach(), query.shape[-1] ** -0.5 if scale is None else scale)
        return found

    return attend


def _layer_of(module: nn.Module, key: Tensor) -> BoundedLayer | None:
    cache, number = _cache.get(), getattr(module, "layer_idx", None)
    layer = None if cache is None or not isinstance(number, int) else cache.layers[number]
    shown = layer.shown if isinstance(layer, BoundedLayer) else None
    return layer if shown is not None and shown[0] is key else None


def _mask(visible: Tensor, name: str, query: Tensor) -> Tensor:
    """Expand the mask to all query heads, in the form that the implementation takes."""
    visible = visible.repeat_interleave(query.shape[1] // visible.shape[1], dim=1)
    if name == "sdpa":
        return visible
    if name == "eager":
        lowest = torch.finfo(query.dtype).min
        return torch.zeros_like(visible, dtype=query.dtype).masked_fill_(~visible, lowest)
    raise ValueError(f"attn_implementation={name!r} is not allowed for a padded batch: it must be sdpa or eager")
